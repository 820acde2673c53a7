// The state of a virtio-net device is read out in the middle of its work and loaded again after a reset; the
// pages that it writes are logged. The device gives back what it is sent.
#include "client.h"

#include <poll.h>
#include <sys/uio.h>

// What headers before Linux 6.2 lack: include/uapi/linux/vfio.h.
#define GET_PRECOPY_INFO _IO(VFIO_TYPE, VFIO_BASE + 21)
enum { PRE_COPY = 6 };
struct precopy_info {
	u32 argsz, flags;
	u64 initial_bytes, dirty_bytes;
};

// Offsets in BAR 4, virtio 1.2 section 4.1.4.
enum {
	DRIVER_FEATURE_SELECT = 0x08,
	DRIVER_FEATURE = 0x0c,
	DEVICE_STATUS = 0x14,
	QUEUE_SELECT = 0x16,
	QUEUE_SIZE = 0x18,
	QUEUE_ENABLE = 0x1c,
	QUEUE_DESC = 0x20,
	QUEUE_DRIVER = 0x28,
	QUEUE_DEVICE = 0x30,
	NOTIFY = 0x3000,
};
enum { RECEIVE, TRANSMIT, ENTRIES = 8, FRAME = 100, HEADER = 12 };

struct card {
	struct session s;
	u64 bar;
	u8 *memory;
	u16 sent;
};

static void set_register(const struct card *nic, u64 at, u64 value, size_t size)
{
	CHECK(pwrite(nic->s.device, &value, size, nic->bar + at) == (ssize_t)size, "write of %#lx", at);
}

static u8 status(const struct card *nic)
{
	u8 value;

	CHECK(pread(nic->s.device, &value, 1, nic->bar + DEVICE_STATUS) == 1, "read of the status");
	return value;
}

// Each queue has three pages: descriptors, available ring, used ring.
static u8 *ring(const struct card *nic, int queue, int part)
{
	return nic->memory + (3 * queue + part) * PAGE;
}

static void start(struct card *nic)
{
	memset(nic->memory, 0, 16 * PAGE);
	nic->sent = 0;
	set_register(nic, DEVICE_STATUS, 0, 1);
	set_register(nic, DEVICE_STATUS, 3, 1);
	set_register(nic, DRIVER_FEATURE_SELECT, 1, 4);
	set_register(nic, DRIVER_FEATURE, 1, 4);
	set_register(nic, DEVICE_STATUS, 0x0b, 1);
	for (int queue = RECEIVE; queue <= TRANSMIT; queue++) {
		u64 base = IOVA + 3 * queue * PAGE;

		set_register(nic, QUEUE_SELECT, queue, 2);
		set_register(nic, QUEUE_SIZE, ENTRIES, 2);
		set_register(nic, QUEUE_DESC, base, 8);
		set_register(nic, QUEUE_DRIVER, base + PAGE, 8);
		set_register(nic, QUEUE_DEVICE, base + 2 * PAGE, 8);
		set_register(nic, QUEUE_ENABLE, 1, 2);
	}
	set_register(nic, DEVICE_STATUS, 0x0f, 1);
	CHECK(status(nic) == 0x0f, "status %#x", status(nic));
}

static void offer(const struct card *nic, int queue, u64 iova, u32 length, u16 flags)
{
	u16 at = nic->sent % ENTRIES, next = nic->sent + 1;
	u8 *descriptor = ring(nic, queue, 0) + 16 * at;

	memcpy(descriptor, &iova, 8);
	memcpy(descriptor + 8, &length, 4);
	memcpy(descriptor + 12, &flags, 2);
	memcpy(ring(nic, queue, 1) + 4 + 2 * at, &at, 2);
	__atomic_store_n((u16 *)(void *)(ring(nic, queue, 1) + 2), next, __ATOMIC_RELEASE);
}

// Puts a frame and a buffer for it into the queues: page 8 is sent, page 10 receives.
static void offer_frame(struct card *nic, u32 seed)
{
	fill(nic->memory + 8 * PAGE + HEADER, FRAME, seed);
	memset(nic->memory + 10 * PAGE, 0, PAGE);
	offer(nic, RECEIVE, IOVA + 10 * PAGE, PAGE, 2);
	offer(nic, TRANSMIT, IOVA + 8 * PAGE, HEADER + FRAME, 0);
	nic->sent++;
	set_register(nic, NOTIFY + 4 * TRANSMIT, TRANSMIT, 2);
}

// Whether the frame is there and the device is done with both queues.
static bool has_arrived(const struct card *nic, u32 seed)
{
	u16 *received = (u16 *)(void *)(ring(nic, RECEIVE, 2) + 2);
	u16 *sent = (u16 *)(void *)(ring(nic, TRANSMIT, 2) + 2);

	for (int tries = 0; tries < 2000; tries++) {
		if (__atomic_load_n(received, __ATOMIC_ACQUIRE) == nic->sent &&
		    __atomic_load_n(sent, __ATOMIC_ACQUIRE) == nic->sent)
			return holds(nic->memory + 10 * PAGE + HEADER, FRAME, seed);
		usleep(1000);
	}
	return false;
}

struct feature {
	struct vfio_device_feature header;
	union {
		u64 word;
		struct vfio_device_feature_mig_state state;
		struct vfio_device_feature_dma_logging_control control;
		struct vfio_device_feature_dma_logging_report report;
	};
};

static int feature(const struct card *nic, u32 flags, struct feature *feature)
{
	feature->header.argsz = sizeof(*feature);
	feature->header.flags = flags;
	return ioctl(nic->s.device, VFIO_DEVICE_FEATURE, feature);
}

// The descriptor of the data, or -1.
static int go(const struct card *nic, u32 state)
{
	struct feature set = { .state = { .device_state = state, .data_fd = 77 } };
	struct feature get = { .word = 0 };

	WORKS(feature(nic, VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, &set));
	WORKS(feature(nic, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, &get));
	CHECK(get.state.device_state == state, "state %u, not %u", get.state.device_state, state);
	return set.state.data_fd;
}

static bool is_readable(int data)
{
	struct pollfd poll_data = { .fd = data, .events = POLLIN };

	return poll(&poll_data, 1, 0) == 1 && poll_data.revents & POLLIN;
}

// Which of the 16 pages were written since the last call.
static u64 written(const struct card *nic)
{
	u64 bits = 1ull << 63;
	struct feature get = { .report = { .iova = IOVA, .length = 16 * PAGE, .page_size = PAGE,
		.bitmap = (uintptr_t)&bits } };

	WORKS(feature(nic, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, &get));
	CHECK(bits >> 63, "a report never clears");
	return bits & ~(1ull << 63);
}

void migration(void)
{
	struct function function;
	struct card nic;
	struct vfio_region_info bar = { .argsz = sizeof(bar), .index = VFIO_PCI_BAR4_REGION_INDEX };
	struct precopy_info info = { .argsz = sizeof(info) };
	struct vfio_device_feature_dma_logging_range range = { IOVA, 16 * PAGE };
	struct feature any = { .control = { .page_size = PAGE, .num_ranges = 1,
		.ranges = (uintptr_t)&range } };
	static u8 stream[65536];
	struct iovec parts[2] = { { stream, 5 }, { stream + 5, sizeof(stream) - 5 } };
	ssize_t length, more;
	int data, loading;
	u64 bits;

	CHECK(find_nics(&function, 1) == 1, "no virtio-net");
	nic.s = open_legacy(function, VFIO_TYPE1v2_IOMMU);
	WORKS(ioctl(nic.s.device, VFIO_DEVICE_GET_REGION_INFO, &bar));
	nic.bar = bar.offset;
	nic.memory = anonymous(16 * PAGE);
	WORKS(map(nic.s.container, IOVA, nic.memory, 16 * PAGE, RW));
	start(&nic);
	offer_frame(&nic, 1);
	CHECK(has_arrived(&nic, 1), "the first frame");

	WORKS(feature(&nic, VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_START, &any));
	REFUSED(EINVAL, feature(&nic, VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_START, &any));
	// The device may still have had to ask for a notification of the next frame.
	CHECK((bits = written(&nic) & ~(1ul << 5)) == 0, "%#lx before", bits);
	offer_frame(&nic, 2);
	CHECK(has_arrived(&nic, 2), "the second frame");
	go(&nic, VFIO_DEVICE_STATE_STOP);
	bits = written(&nic);
	// Both used rings and the buffer.
	CHECK(bits == (1 << 2 | 1 << 5 | 1 << 10), "%#lx written", bits);
	CHECK((bits = written(&nic)) == 0, "%#lx after they were read", bits);
	go(&nic, VFIO_DEVICE_STATE_RUNNING);
	ok("the device's writes are logged");

	data = go(&nic, PRE_COPY);
	CHECK(data >= 0 && is_readable(data), "the data of PRE_COPY");
	WORKS(ioctl(data, GET_PRECOPY_INFO, &info));
	CHECK(info.initial_bytes > 0, "no initial bytes");
	length = readv(data, parts, 2);
	CHECK(length == (ssize_t)info.initial_bytes, "%zd of %lu", length, info.initial_bytes);
	REFUSED(ENOMSG, read(data, stream, 1));
	CHECK(!is_readable(data), "readable at the temporary end");
	offer_frame(&nic, 3);
	CHECK(has_arrived(&nic, 3), "a frame in PRE_COPY");
	CHECK(go(&nic, VFIO_DEVICE_STATE_STOP_COPY) == -1, "the session goes on");
	CHECK(is_readable(data), "the data of STOP_COPY");
	offer_frame(&nic, 4);
	while ((more = read(data, stream + length, 100)) > 0)
		length += more;
	CHECK(more == 0, "the end");
	REFUSED(EINVAL, ioctl(data, GET_PRECOPY_INFO, &info));
	REFUSED(EBADF, write(data, stream, 1));
	REFUSED(ESPIPE, pread(data, stream, 1, 0));
	CHECK(nic.memory[10 * PAGE + HEADER] == 0, "it works though it is stopped");
	ok("%zd bytes of state", length);

	// All is forgotten.
	WORKS(ioctl(nic.s.device, VFIO_DEVICE_RESET));
	set_command(&nic.s, 0x6);
	REFUSED(ENODEV, read(data, stream, 1));
	CHECK(is_readable(data), "whoever polls hears that it is over");
	close(data);
	CHECK(status(&nic) == 0, "status %#x after the reset", status(&nic));
	loading = go(&nic, VFIO_DEVICE_STATE_RESUMING);
	REFUSED(EBADF, read(loading, stream, 1));
	for (ssize_t at = 0; at < length; at += 50) {
		more = length - at < 50 ? length - at : 50;
		CHECK(write(loading, stream + at, more) == more, "write at %zd", at);
	}
	CHECK(go(&nic, VFIO_DEVICE_STATE_RUNNING) == -1, "no data in RUNNING");
	CHECK(status(&nic) == 0x0f, "status %#x", status(&nic));
	CHECK(has_arrived(&nic, 4), "the frame that was offered while it was stopped");
	offer_frame(&nic, 5);
	CHECK(has_arrived(&nic, 5), "the next frame");
	ok("it goes on after its state was loaded");

	close(loading);
	loading = go(&nic, VFIO_DEVICE_STATE_RESUMING);
	stream[0] ^= 1;
	REFUSED(EINVAL, write(loading, stream, length));
	REFUSED(ENODEV, write(loading, stream, length));
	any.state.device_state = VFIO_DEVICE_STATE_RUNNING;
	REFUSED(EINVAL, feature(&nic, VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, &any));
	CHECK(any.state.data_fd == -1, "descriptor %d", any.state.data_fd);
	WORKS(feature(&nic, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, &any));
	CHECK(any.state.device_state == VFIO_DEVICE_STATE_ERROR, "state %u", any.state.device_state);
	WORKS(ioctl(nic.s.device, VFIO_DEVICE_RESET));
	WORKS(feature(&nic, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, &any));
	CHECK(any.state.device_state == VFIO_DEVICE_STATE_RUNNING, "state %u", any.state.device_state);
	set_command(&nic.s, 0x6);
	start(&nic);
	offer_frame(&nic, 6);
	CHECK(has_arrived(&nic, 6), "a frame after an error and a reset");
	close_session(&nic.s);
	ok("a state that is none is an error until the reset");
}
