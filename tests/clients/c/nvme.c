// A small NVMe driver (NVM Express Base 1.4): brings the controller up, identifies it, reads and
// writes blocks with MSI-X, and meets a completion error where a transfer is refused.
#include "client.h"

#include <time.h>

enum { CAP = 0x00, CC = 0x14, CSTS = 0x1c, AQA = 0x24, ASQ = 0x28, ACQ = 0x30, DOORBELLS = 0x1000 };
enum { IDENTIFY = 0x06, CREATE_CQ = 0x05, CREATE_SQ = 0x01, FLUSH = 0x00, WRITE = 0x01, READ = 0x02 };
#define ENTRIES 16

struct command {
	u8 opcode, flags;
	u16 id;
	u32 namespace;
	u64 reserved, metadata, prp1, prp2;
	u32 words[6];
};

struct completion {
	u32 result, reserved;
	u16 head, queue, id, status;
};

struct queue {
	struct command *commands;
	volatile struct completion *completions;
	u32 number, tail, head, phase;
	int event;
};

struct controller {
	struct session session;
	u32 stride;
	u8 *memory;
	struct queue admin, io;
};

// Where each page of the driver's memory is; the whole is one mapping at IOVA.
enum { ADMIN_SQ, ADMIN_CQ, IO_SQ, IO_CQ, DATA, LIST = DATA + 20, PAGES };

static u64 at(u32 page)
{
	return IOVA + page * PAGE;
}

static u64 read64(const struct session *s, u64 offset)
{
	return read32(s, offset) | (u64)read32(s, offset + 4) << 32;
}

static void wait_ready(const struct session *s, u32 ready)
{
	struct timespec rest = { .tv_nsec = 1000000 };

	for (int i = 0; (read32(s, CSTS) & 1) != ready; i++) {
		CHECK(i < 5000, "CSTS.RDY does not become %u", ready);
		nanosleep(&rest, NULL);
	}
}

// Submits one command and waits for its interrupt; returns the status without the phase bit.
static u16 run(struct controller *c, struct queue *q, struct command command)
{
	volatile struct completion *done = &q->completions[q->head];
	u16 status;

	command.id = 100 + q->tail;
	q->commands[q->tail] = command;
	q->tail = (q->tail + 1) % ENTRIES;
	__sync_synchronize();
	write32(&c->session, DOORBELLS + 2 * q->number * c->stride, q->tail);
	CHECK(events(q->event, 5000) >= 1, "no MSI-X for opcode %#x on queue %u", command.opcode, q->number);
	status = done->status;
	CHECK((status & 1) == q->phase, "an interrupt without a completion");
	CHECK(done->id == command.id, "completion of command %u instead of %u", done->id, command.id);
	q->head = (q->head + 1) % ENTRIES;
	if (!q->head)
		q->phase ^= 1;
	write32(&c->session, DOORBELLS + (2 * q->number + 1) * c->stride, q->head);
	return status >> 1;
}

static void set_vectors(struct controller *c)
{
	struct vfio_irq_info info = { .argsz = sizeof(info), .index = VFIO_PCI_MSIX_IRQ_INDEX };
	struct {
		struct vfio_irq_set set;
		int descriptors[2];
	} request = {
		.set = {
			.argsz = sizeof(request),
			.flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
			.index = VFIO_PCI_MSIX_IRQ_INDEX,
			.count = 2,
		},
		.descriptors = { c->admin.event, c->io.event },
	};

	WORKS(ioctl(c->session.device, VFIO_DEVICE_GET_IRQ_INFO, &info));
	CHECK(info.count >= 2, "%u MSI-X vectors", info.count);
	WORKS(ioctl(c->session.device, VFIO_DEVICE_SET_IRQS, &request));
	WORKS(set_none(c->session.device, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_IRQ_SET_ACTION_TRIGGER, 2));
	CHECK(events(c->admin.event, 1000) == 1 && events(c->io.event, 1000) == 1, "loopback triggers");
	ok("MSI-X vectors");
}

static void bring_up(struct controller *c)
{
	const struct session *s = &c->session;

	CHECK(read64(s, CAP) & 1ul << 37, "the NVM command set is not offered");
	c->stride = 4u << (read64(s, CAP) >> 32 & 0xf);
	write32(s, CC, 0);
	wait_ready(s, 0);
	memset(c->memory, 0, 4 * PAGE);
	c->admin = (struct queue){ (void *)c->memory, (void *)(c->memory + PAGE), 0, 0, 0, 1, c->admin.event };
	c->io = (struct queue){ (void *)(c->memory + 2 * PAGE), (void *)(c->memory + 3 * PAGE), 1, 0, 0, 1, c->io.event };
	write32(s, AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1));
	write32(s, ASQ, at(ADMIN_SQ));
	write32(s, ASQ + 4, 0);
	write32(s, ACQ, at(ADMIN_CQ));
	write32(s, ACQ + 4, 0);
	write32(s, CC, 4 << 20 | 6 << 16 | 1);
	wait_ready(s, 1);
	CHECK(!run(c, &c->admin, (struct command){ .opcode = CREATE_CQ, .prp1 = at(IO_CQ),
		.words = { (ENTRIES - 1) << 16 | 1, 1 << 16 | 3 } }), "create a completion queue");
	CHECK(!run(c, &c->admin, (struct command){ .opcode = CREATE_SQ, .prp1 = at(IO_SQ),
		.words = { (ENTRIES - 1) << 16 | 1, 1 << 16 | 1 } }), "create a submission queue");
	ok("controller is ready");
}

static u32 identify(struct controller *c)
{
	u8 *data = c->memory + DATA * PAGE;
	u64 blocks;
	u32 shift, namespaces;

	CHECK(!run(c, &c->admin, (struct command){ .opcode = IDENTIFY, .prp1 = at(DATA), .words = { 1 } }),
		"identify the controller");
	CHECK(data[4] > 0x20 && data[24] > 0x20, "no serial or model number");
	memcpy(&namespaces, data + 516, 4);
	CHECK(namespaces >= 1, "%u namespaces", namespaces);
	CHECK(!run(c, &c->admin, (struct command){ .opcode = IDENTIFY, .namespace = 1, .prp1 = at(DATA) }),
		"identify namespace 1");
	memcpy(&blocks, data, 8);
	shift = data[128 + 4 * (data[26] & 0xf) + 2];
	CHECK(blocks && shift >= 9 && shift <= 12, "%lu blocks of 2^%u bytes", blocks, shift);
	ok("identify: %lu blocks of %u bytes", blocks, 1u << shift);
	return 1u << shift;
}

static struct command transfer(u8 opcode, u64 prp1, u64 prp2, u64 block, u32 blocks)
{
	return (struct command){
		.opcode = opcode,
		.namespace = 1,
		.prp1 = prp1,
		.prp2 = prp2,
		.words = { block, block >> 32, blocks - 1 },
	};
}

static void blocks(struct controller *c, u32 block_size)
{
	u8 *data = c->memory + DATA * PAGE;
	u64 *list = (void *)(c->memory + LIST * PAGE);
	u32 per_page = PAGE / block_size;

	for (u32 i = 0; i < 40; i++) {
		fill(data, PAGE, i);
		CHECK(!run(c, &c->io, transfer(WRITE, at(DATA), 0, i * per_page, per_page)), "write %u", i);
	}
	for (u32 i = 0; i < 40; i++) {
		CHECK(!run(c, &c->io, transfer(READ, at(DATA), 0, i * per_page, per_page)), "read %u", i);
		CHECK(holds(data, PAGE, i), "page %u does not hold what was written", i);
	}
	CHECK(!run(c, &c->io, (struct command){ .opcode = FLUSH, .namespace = 1 }), "flush");
	ok("pages, the queues going round");

	for (u32 i = 1; i < 8; i++)
		list[i - 1] = at(DATA + 8 + i);
	fill(data, 8 * PAGE, 99);
	for (u32 i = 1; i < 8; i++)
		list[i + 15] = at(DATA + i);
	CHECK(!run(c, &c->io, transfer(WRITE, at(DATA), at(LIST) + 16 * 8, 0, 8 * per_page)), "write by a list");
	CHECK(!run(c, &c->io, transfer(READ, at(DATA + 8), at(LIST), 0, 8 * per_page)), "read by a list");
	CHECK(!memcmp(data, data + 8 * PAGE, 8 * PAGE), "eight pages by a list");
	CHECK(!run(c, &c->io, transfer(READ, at(DATA) + PAGE - block_size, at(DATA + 1), per_page, 2)),
		"read across two pages");
	ok("lists of pages");
}

// Wrong commands end in a status; the controller goes on.
static void errors(struct controller *c, u32 block_size)
{
	u32 per_page = PAGE / block_size;

	CHECK(run(c, &c->io, transfer(READ, at(DATA), 0, ~0ul >> 1, 1)), "a read beyond the end");
	CHECK(run(c, &c->io, (struct command){ .opcode = 0x7f, .namespace = 1 }), "an unknown opcode");
	CHECK(run(c, &c->io, (struct command){ .opcode = READ, .namespace = 77, .prp1 = at(DATA) }),
		"a read of namespace 77");
	CHECK(!run(c, &c->io, transfer(READ, at(DATA), 0, 0, per_page)), "a good read after bad ones");
	ok("wrong commands");
}

void nvme(void)
{
	struct controller c = { .session = open_legacy(find_nvme(), VFIO_TYPE1v2_IOMMU) };
	u32 block_size;

	c.memory = anonymous(PAGES * PAGE);
	c.admin.event = event();
	c.io.event = event();
	WORKS(map(c.session.container, IOVA, c.memory, PAGES * PAGE, RW));
	set_vectors(&c);
	bring_up(&c);
	block_size = identify(&c);
	blocks(&c, block_size);
	errors(&c, block_size);
	WORKS(ioctl(c.session.device, VFIO_DEVICE_RESET));
	set_command(&c.session, 0x6);
	CHECK(!(read32(&c.session, CSTS) & 1), "the controller is ready after a reset");
	bring_up(&c);
	CHECK(!run(&c, &c.io, transfer(READ, at(DATA), 0, 0, 1)), "a read after a reset");
	ok("reset");
	write32(&c.session, CC, read32(&c.session, CC) | 1 << 14);
	for (int i = 0; (read32(&c.session, CSTS) >> 2 & 3) != 2; i++) {
		CHECK(i < 5000, "no shutdown");
		usleep(1000);
	}
	ok("shutdown");
	WORKS(unmap(c.session.container, 0, 0, VFIO_DMA_UNMAP_FLAG_ALL));
	close_session(&c.session);
}
