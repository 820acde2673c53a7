// Plain memory of a device: the controller memory buffer of an NVMe, mapped by the program while the device uses it.
#include "client.h"

#include <fcntl.h>
#include <sys/mman.h>

enum { CAP_HIGH = 0x04, CC = 0x14, CSTS = 0x1c, AQA = 0x24, ASQ = 0x28, ACQ = 0x30 };
enum { CMBLOC = 0x38, CMBSZ = 0x3c, CMBMSC = 0x50, CMBSTS = 0x58, DOORBELLS = 0x1000 };
enum { CREATE_CQ = 5, CREATE_SQ = 1, WRITE = 1, READ = 2 };
#define ENTRIES 16
// Where commands find the buffer: no mapping is there.
#define BASE 0x4000000000ul

// What lies in the buffer, in pages.
enum { SQ, CQ, DATA, BACK, LIST };

static u8 *buffer;
static struct vfio_region_info region;

static void *map_buffer(int device)
{
	void *memory = mmap(NULL, region.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, region.offset);

	CHECK(memory != MAP_FAILED, "mmap of the buffer");
	return memory;
}

static void find_buffer(const struct session *s)
{
	CHECK(read32(s, CAP_HIGH) & 1 << 25, "no controller memory buffer");
	write64(s, CMBMSC, BASE | 3);
	CHECK((read32(s, CMBLOC) & 7) == 2, "the buffer is BAR %u", read32(s, CMBLOC) & 7);
	region = (struct vfio_region_info){ .argsz = sizeof(region), .index = 2 };
	WORKS(ioctl(s->device, VFIO_DEVICE_GET_REGION_INFO, &region));
	CHECK(region.flags == (VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE | VFIO_REGION_INFO_FLAG_MMAP),
		"flags of the BAR: %#x", region.flags);
	CHECK(region.size == (u64)(read32(s, CMBSZ) >> 12) << 12, "the BAR has %#llx bytes", region.size);
	buffer = map_buffer(s->device);
	ok("a buffer of %llu KiB", region.size >> 10);
}

static void same_bytes(const struct session *s)
{
	u8 bytes[64];
	off_t end = region.offset + region.size;

	fill(buffer + 100, 64, 1);
	CHECK(pread(s->device, bytes, 64, region.offset + 100) == 64 && holds(bytes, 64, 1), "pread of what was stored");
	fill(bytes, 64, 2);
	CHECK(pwrite(s->device, bytes, 64, end - 64) == 64, "pwrite");
	CHECK(holds(buffer + region.size - 64, 64, 2), "a load of what was written");
	CHECK(all_bytes(buffer + PAGE, region.size - 2 * PAGE, 0), "memory that nobody wrote is zero");
	ok("mapping, pread and pwrite see the same bytes");
}

static void refusals(const struct session *s)
{
	struct vfio_region_info other = { .argsz = sizeof(other), .index = 0 };

	// Linux drivers/vfio/pci/vfio_pci_core.c, vfio_pci_core_mmap.
	REFUSED(EINVAL, (long)mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, s->device, region.offset));
	REFUSED(EINVAL, (long)mmap(NULL, region.size + PAGE, PROT_READ, MAP_SHARED, s->device, region.offset));
	WORKS(ioctl(s->device, VFIO_DEVICE_GET_REGION_INFO, &other));
	if (!(other.flags & VFIO_REGION_INFO_FLAG_MMAP))
		REFUSED(EINVAL, (long)mmap(NULL, PAGE, PROT_READ, MAP_SHARED, s->device, other.offset));
	// A device file has no size that a program could change.
	CHECK(ftruncate(s->device, 0) == -1, "ftruncate of a device");
	CHECK(ftruncate(s->device, 1l << 62) == -1, "ftruncate of a device");
	CHECK(holds(buffer + 100, 64, 1), "the buffer after that");
	ok("what may not be mapped or changed");
}

static u64 at(u32 page)
{
	return BASE + page * PAGE;
}

static void wait_ready(const struct session *s, u32 ready)
{
	for (int i = 0; (read32(s, CSTS) & 1) != ready; i++) {
		CHECK(i < 5000, "CSTS.RDY does not become %u", ready);
		usleep(1000);
	}
}

struct command {
	u8 opcode, flags;
	u16 id;
	u32 namespace;
	u64 reserved, metadata, prp1, prp2;
	u32 words[6];
};

// Runs a command of queue `number`; the admin queues lie `pages` behind the others.
static void run(const struct session *s, u32 number, u32 pages, u32 *tail, struct command command)
{
	struct command *commands = (void *)(buffer + (pages + SQ) * PAGE);
	volatile u16 *done = (void *)(buffer + (pages + CQ) * PAGE + *tail * 16);

	command.id = *tail;
	commands[*tail] = command;
	*tail += 1;
	__sync_synchronize();
	write32(s, DOORBELLS + 8 * number, *tail);
	for (int i = 0; !(done[7] & 1); i++) {
		CHECK(i < 5000, "no completion of opcode %#x", command.opcode);
		usleep(1000);
	}
	CHECK(done[7] == 1, "status %#x of opcode %#x", done[7] >> 1, command.opcode);
}

static void queues(const struct session *s)
{
	u32 admin = 0, io = 0, behind = 16;
	u64 *list = (void *)(buffer + LIST * PAGE);

	write32(s, CC, 0);
	wait_ready(s, 0);
	memset(buffer, 0, 32 * PAGE);
	write32(s, AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1));
	write64(s, ASQ, at(behind + SQ));
	write64(s, ACQ, at(behind + CQ));
	write32(s, CC, 4 << 20 | 6 << 16 | 1);
	wait_ready(s, 1);
	CHECK(!(read32(s, CMBSTS) & 1), "the base is invalid");
	run(s, 0, behind, &admin, (struct command){ .opcode = CREATE_CQ, .prp1 = at(CQ),
		.words = { (ENTRIES - 1) << 16 | 1, 1 } });
	run(s, 0, behind, &admin, (struct command){ .opcode = CREATE_SQ, .prp1 = at(SQ),
		.words = { (ENTRIES - 1) << 16 | 1, 1 << 16 | 1 } });
	fill(buffer + DATA * PAGE, PAGE, 3);
	run(s, 1, 0, &io, (struct command){ .opcode = WRITE, .namespace = 1, .prp1 = at(DATA), .words = { 8, 0, 7 } });
	run(s, 1, 0, &io, (struct command){ .opcode = READ, .namespace = 1, .prp1 = at(BACK), .words = { 8, 0, 7 } });
	CHECK(holds(buffer + BACK * PAGE, PAGE, 3), "blocks that were written and read");
	for (u32 i = 0; i < 4; i++)
		list[i] = at(40 + 2 * i);
	run(s, 1, 0, &io, (struct command){ .opcode = READ, .namespace = 1, .prp1 = at(BACK), .prp2 = at(LIST),
		.words = { 4, 0, 31 } });
	CHECK(all_bytes(buffer + BACK * PAGE, 2048, 0), "blocks that nobody wrote");
	// The blocks from 8 on stand from the middle of the first page on.
	CHECK(!memcmp(buffer + BACK * PAGE + 2048, buffer + DATA * PAGE, 2048) &&
		!memcmp(buffer + 40 * PAGE, buffer + DATA * PAGE + 2048, 2048), "data by a list in the buffer");
	ok("queues, lists and data in the buffer");
}

// Another device writes into the buffer: its address is mapped for DMA like any memory.
static void peers(const struct session *nvme)
{
	struct session edu = { .function = find_edu(), .iommufd = -1, .container = nvme->container };

	edu.group = open_group(&edu.function);
	CHECK(edu.group >= 0, "open of edu's group");
	WORKS(ioctl(edu.group, VFIO_GROUP_SET_CONTAINER, &edu.container));
	edu.device = ioctl(edu.group, VFIO_GROUP_GET_DEVICE_FD, edu.function.address);
	CHECK(edu.device >= 0, "GET_DEVICE_FD");
	read_layout(&edu);
	set_command(&edu, 0x6);
	WORKS(map(nvme->container, IOVA, buffer + 64 * PAGE, 4 * PAGE, RW));
	fill(buffer + 64 * PAGE, 2048, 4);
	edu_dma(&edu, IOVA, 0, 2048, TO_EDU);
	edu_dma(&edu, IOVA + 3 * PAGE, 0, 2048, FROM_EDU);
	CHECK(holds(buffer + 67 * PAGE, 2048, 4), "what another device wrote");
	WORKS(unmap(nvme->container, IOVA, 4 * PAGE, 0));
	close(edu.device);
	close(edu.group);
	ok("another device's DMA into the buffer");
}

// Two files of one device are two: each is answered, closed and mapped by itself.
static void two_files(const struct session *s)
{
	struct session again = *s;
	u8 *second;

	again.device = ioctl(s->group, VFIO_GROUP_GET_DEVICE_FD, s->function.address);
	CHECK(again.device >= 0, "GET_DEVICE_FD once more");
	second = map_buffer(again.device);
	fill(second + 5 * PAGE, PAGE, 6);
	CHECK(holds(buffer + 5 * PAGE, PAGE, 6), "the same memory by two files");
	CHECK(read32(&again, CSTS) == read32(s, CSTS), "registers by two files");
	close(again.device);
	CHECK(holds(second + 5 * PAGE, PAGE, 6), "a mapping outlives its descriptor");
	munmap(second, region.size);
	CHECK(read32(s, CSTS) & 1, "the first file after the second was closed");
	ok("two files of one device");
}

static void in_child_too(void *argument)
{
	(void)argument;
	buffer[6 * PAGE] = 77;
}

// A mapping stays within reach while the device's memory is disabled; calls are told that it is.
static void disabled(const struct session *s)
{
	u8 byte;

	set_command(s, 0x4);
	REFUSED(EIO, pread(s->device, &byte, 1, region.offset));
	buffer[0] = 1;
	CHECK(buffer[0] == 1, "the mapping while memory is disabled");
	set_command(s, 0x6);
	CHECK(pread(s->device, &byte, 1, region.offset) == 1 && byte == 1, "pread once it is enabled");
	ok("memory that is disabled");
}

// By an iommufd the buffer is no target of DMA: mm/gup.c, check_vma_flags.
static void not_by_iommufd(enum mode by)
{
	struct session s = (mode = by, open_legacy(find_nvme(), VFIO_TYPE1v2_IOMMU));
	struct vfio_region_info registers = { .argsz = sizeof(registers), .index = 0 };
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach), .pt_id = s.ioas };
	struct vfio_device_detach_iommufd_pt detach = { .argsz = sizeof(detach) };
	u8 *around = anonymous(3 * PAGE);

	find_buffer(&s);
	REFUSED(EFAULT, map(s.container, IOVA, buffer, region.size, RW));
	REFUSED(EFAULT, map(s.container, IOVA, buffer + PAGE, PAGE, VFIO_DMA_MAP_FLAG_READ));
	CHECK(mmap(around + PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, s.device, region.offset) ==
		around + PAGE, "mmap of the buffer between memory");
	REFUSED(EFAULT, map(s.container, IOVA, around, 3 * PAGE, RW));
	WORKS(map(s.container, IOVA, around, PAGE, RW));
	WORKS(unmap(s.container, IOVA, PAGE, 0));
	WORKS(ioctl(s.device, VFIO_DEVICE_GET_REGION_INFO, &registers));
	if (registers.flags & VFIO_REGION_INFO_FLAG_MMAP) {
		u8 *mapped = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, s.device, registers.offset);

		CHECK(mapped != MAP_FAILED, "mmap of the registers");
		REFUSED(EFAULT, map(s.container, IOVA, mapped, PAGE, RW));
		munmap(mapped, PAGE);
	}
	if (by == IOMMUFD) {
		// Without a device nothing is pinned yet.
		WORKS(ioctl(s.device, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach));
		WORKS(map(s.container, IOVA, buffer, PAGE, RW));
		REFUSED(EFAULT, ioctl(s.device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach));
		WORKS(unmap(s.container, IOVA, PAGE, 0));
		WORKS(ioctl(s.device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach));
	}
	munmap(around, 3 * PAGE);
	munmap(buffer, region.size);
	close_session(&s);
}

void memory_buffer(void)
{
	struct session s = open_legacy(find_nvme(), VFIO_TYPE1v2_IOMMU);

	find_buffer(&s);
	same_bytes(&s);
	refusals(&s);
	queues(&s);
	peers(&s);
	two_files(&s);
	in_child(in_child_too, NULL);
	CHECK(buffer[6 * PAGE] == 77, "what a child stored");
	ok("children");
	disabled(&s);
	WORKS(ioctl(s.device, VFIO_DEVICE_RESET));
	CHECK(!read32(&s, CMBSZ), "a buffer that is shown after a reset");
	close(s.group);
	close(s.container);
	close(s.device);
	buffer[1] = 2;
	munmap(buffer, region.size);
	s = open_legacy(find_nvme(), VFIO_TYPE1v2_IOMMU);
	close_session(&s);
	ok("opened again");
	for (enum mode by = COMPAT_GROUP; by <= IOMMUFD; by++)
		not_by_iommufd(by);
	ok("no target of DMA by an iommufd");
}
