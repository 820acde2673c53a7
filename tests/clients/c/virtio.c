// A driver for virtio-net as small as one can be: a queue each way, one interrupt for what is received. Virtio 1.2.
#include "client.h"

// Structures in BAR 4, and registers of the common configuration.
enum {
	COMMON = 0x0000,
	NOTIFY = 0x3000,
	FEATURE_SELECT = COMMON + 0x08,
	FEATURE = COMMON + 0x0c,
	STATUS = COMMON + 0x14,
	QUEUE_SELECT = COMMON + 0x16,
	QUEUE_SIZE = COMMON + 0x18,
	QUEUE_VECTOR = COMMON + 0x1a,
	QUEUE_ENABLE = COMMON + 0x1c,
	QUEUE_RINGS = COMMON + 0x20,
};
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };
enum { RECEIVE, TRANSMIT };
enum { ENTRIES = 8, HEADER = 12 };

struct descriptor {
	u64 address;
	u32 length;
	u16 flags, next;
};

struct available {
	u16 flags, index, ring[ENTRIES];
};

struct used {
	u16 flags;
	volatile u16 index;
	struct {
		u32 id, length;
	} ring[ENTRIES];
};

// One page each: the rings of both queues, and a buffer each.
enum { RINGS = 0, BUFFERS = 2, PAGES = 4 };

static void set(const struct nic *nic, u64 at, u64 value, size_t size)
{
	CHECK(pwrite(nic->s.device, &value, size, nic->bar + at) == (ssize_t)size, "write at %#lx", at);
}

static struct descriptor *descriptors(const struct nic *nic, int queue)
{
	return (void *)(nic->memory + (RINGS + queue) * PAGE);
}

static struct available *available(const struct nic *nic, int queue)
{
	return (void *)(nic->memory + (RINGS + queue) * PAGE + 0x400);
}

static struct used *used(const struct nic *nic, int queue)
{
	return (void *)(nic->memory + (RINGS + queue) * PAGE + 0x800);
}

static u8 *buffer(const struct nic *nic, int queue)
{
	return nic->memory + (BUFFERS + queue) * PAGE;
}

// Makes the queue's buffer available once more.
static void give(struct nic *nic, int queue, u32 length)
{
	struct available *ring = available(nic, queue);

	descriptors(nic, queue)[0] = (struct descriptor){
		.address = IOVA + (BUFFERS + queue) * PAGE,
		.length = length,
		.flags = queue == RECEIVE ? 2 : 0,
	};
	ring->ring[ring->index % ENTRIES] = 0;
	__sync_synchronize();
	ring->index++;
	__sync_synchronize();
	set(nic, NOTIFY + 4 * queue, queue, 2);
}

void start_nic(struct nic *nic)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = VFIO_PCI_BAR4_REGION_INDEX };
	u8 status = 0;

	WORKS(ioctl(nic->s.device, VFIO_DEVICE_GET_REGION_INFO, &info));
	nic->bar = info.offset;
	nic->memory = anonymous(PAGES * PAGE);
	WORKS(map(nic->s.container, IOVA, nic->memory, PAGES * PAGE, RW));
	nic->received = event();
	WORKS(set_event(nic->s.device, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_IRQ_SET_ACTION_TRIGGER, nic->received));
	set(nic, STATUS, 0, 1);
	set(nic, STATUS, ACKNOWLEDGE | DRIVER, 1);
	// VERSION_1 and ACCESS_PLATFORM.
	set(nic, FEATURE_SELECT, 1, 4);
	set(nic, FEATURE, 3, 4);
	set(nic, STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK, 1);
	CHECK(pread(nic->s.device, &status, 1, nic->bar + STATUS) == 1, "read of the status");
	CHECK(status & FEATURES_OK, "the device refuses the features");
	for (int queue = RECEIVE; queue <= TRANSMIT; queue++) {
		u64 rings = IOVA + (RINGS + queue) * PAGE;

		set(nic, QUEUE_SELECT, queue, 2);
		set(nic, QUEUE_SIZE, ENTRIES, 2);
		set(nic, QUEUE_VECTOR, queue == RECEIVE ? 0 : 0xffff, 2);
		set(nic, QUEUE_RINGS, rings, 8);
		set(nic, QUEUE_RINGS + 8, rings + 0x400, 8);
		set(nic, QUEUE_RINGS + 16, rings + 0x800, 8);
		set(nic, QUEUE_ENABLE, 1, 2);
	}
	set(nic, STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK, 1);
	give(nic, RECEIVE, PAGE);
}

void send_frame(struct nic *nic, const void *frame, size_t size)
{
	memset(buffer(nic, TRANSMIT), 0, HEADER);
	memcpy(buffer(nic, TRANSMIT) + HEADER, frame, size);
	give(nic, TRANSMIT, HEADER + size);
}

size_t receive_frame(struct nic *nic, void *frame, size_t size)
{
	u16 before = nic->seen++;
	size_t length;

	// Nothing is asked of the device meanwhile: the interrupt is all there is.
	CHECK(events(nic->received, 20000), "no interrupt for a frame");
	CHECK(used(nic, RECEIVE)->index == (u16)(before + 1), "no frame after an interrupt");
	length = used(nic, RECEIVE)->ring[before % ENTRIES].length;
	CHECK(length >= HEADER && length - HEADER <= size, "a frame of %zu bytes", length);
	memcpy(frame, buffer(nic, RECEIVE) + HEADER, length - HEADER);
	give(nic, RECEIVE, PAGE);
	return length - HEADER;
}

// A frame from one NIC has to arrive at another, or at itself.
void frame_arrives(struct nic *from, struct nic *to, u32 seed)
{
	static const u8 header[14] = { 255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 0x88, 0xb5 };
	u8 frame[200], arrived[PAGE];
	size_t length;

	memcpy(frame, header, sizeof(header));
	fill(frame + sizeof(header), sizeof(frame) - sizeof(header), seed);
	send_frame(from, frame, sizeof(frame));
	// A network sends frames of its own.
	do
		length = receive_frame(to, arrived, sizeof(arrived));
	while (length < sizeof(header) || memcmp(arrived + 12, header + 12, 2));
	CHECK(length == sizeof(frame), "the frame's length, %zu", length);
	CHECK(!memcmp(frame, arrived, sizeof(frame)), "the frame's bytes");
}

// With one NIC its peer returns each frame, with two their peer joins them.
void frames(void)
{
	struct function functions[2] = { 0 };
	struct nic nics[2] = { 0 };
	unsigned count = find_nics(functions, COUNT(functions));

	CHECK(count, "no virtio-net");
	for (unsigned i = 0; i < count; i++) {
		nics[i].s = open_legacy(functions[i], VFIO_TYPE1v2_IOMMU);
		start_nic(&nics[i]);
	}
	for (u32 round = 0; round < 3; round++) {
		frame_arrives(&nics[0], &nics[count - 1], round);
		ok("frame %u there", round);
		if (count > 1) {
			frame_arrives(&nics[1], &nics[0], 100 + round);
			ok("frame %u back", round);
		}
	}
	for (unsigned i = 0; i < count; i++)
		close_session(&nics[i].s);
}
