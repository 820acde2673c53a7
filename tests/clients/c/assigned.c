// Two functions that a guest assigns to this program by its own VT-d unit: the same memory in both, moves between
// containers, mappings that come and go. What the unit refuses, the guest's kernel is told of: by an interrupt of the
// unit for each transfer, and in its log.
#include "client.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>

// Beyond 32 bits and far apart: other tables at every level.
#define HIGH 0x7654321000ul
#define LOW 0x1000ul
#define HUGE_IOVA 0x4000000000ul
#define HUGE_PAGE 0x200000ul

// What Linux says of a transfer to where nothing is mapped (drivers/iommu/intel/dmar.c, the tables of fault reasons):
// in legacy mode; in scalable mode by a table of the first stage, and of the second.
static const struct {
	bool scalable;
	const char *written, *read;
} reasons[] = {
	{ false, "[fault reason 0x05] PTE Write access is not set", "[fault reason 0x06] PTE Read access is not set" },
	{ true, "[fault reason 0x71] SM: Present bit in first-level paging entry is clear",
		"[fault reason 0x71] SM: Present bit in first-level paging entry is clear" },
	{ true, "[fault reason 0x79] SM: Read/Write permission error in second-level paging entry",
		"[fault reason 0x79] SM: Read/Write permission error in second-level paging entry" },
};

static int kernel_log = -1;
static unsigned refusals;
// The function whose refused transfers the unit does not see: they are refused where the device is.
static char remote[40];

// Interrupts that the unit has sent so far. The processor that got one since it was asked last is put there.
static u64 unit_interrupts(int *processor)
{
	static u64 last[64];
	FILE *file = fopen("/proc/interrupts", "r");
	char line[512];
	u64 sum = 0;

	CHECK(file, "open /proc/interrupts");
	while (fgets(line, sizeof(line), file)) {
		char *at = strchr(line, ':');

		if (!at || !strstr(line, "dmar0"))
			continue;
		at++;
		for (int column = 0; column < 64; column++) {
			char *end;
			u64 count = strtoul(at, &end, 10);

			if (end == at || (*end != ' ' && *end != '\n'))
				break;
			if (count != last[column])
				*processor = column;
			last[column] = count;
			sum += count;
			at = end;
		}
	}
	fclose(file);
	return sum;
}

// A transfer that is refused; the kernel gets one interrupt. What it did not move is for the caller to check.
static void refused_dma(const struct session *s, u64 iova, u32 count, u32 command)
{
	struct timespec rest = { .tv_nsec = 1000000 };
	int processor = 0;
	u64 before = unit_interrupts(&processor), after;
	cpu_set_t one;

	edu_dma(s, iova, 0, count, command);
	if (!strcmp(s->function.address, remote))
		return;
	for (int i = 0; (after = unit_interrupts(&processor)) == before && i < 2000; i++)
		nanosleep(&rest, NULL);
	CHECK(after == before + 1, "%lu interrupts for a refused transfer at %#lx", after - before, iova);
	refusals++;
	// Where the kernel's handler runs to its end before this program goes on: while it is at it, a further record raises
	// no interrupt of its own.
	CPU_ZERO(&one);
	CPU_SET(processor, &one);
	CHECK(!sched_setaffinity(0, sizeof(one), &one), "run on processor %d", processor);
}

static void forget_log(void)
{
	if (kernel_log < 0)
		kernel_log = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	CHECK(kernel_log >= 0, "open /dev/kmsg");
	CHECK(lseek(kernel_log, 0, SEEK_END) >= 0, "lseek of /dev/kmsg");
}

// The unit's capabilities as the kernel read them.
static u64 extended_capabilities(void)
{
	char text[32] = "";
	int file = open("/sys/class/iommu/dmar0/intel-iommu/ecap", O_RDONLY | O_CLOEXEC);

	CHECK(file >= 0 && read(file, text, sizeof(text) - 1) > 0, "the unit's extended capabilities");
	close(file);
	return strtoul(text, NULL, 16);
}

// Whether the kernel has enabled a function's ATS capability (PCI Express 6.0 section 10.5.1): id 0xf, and bit 15 of the
// control register at 6.
static bool caches_translations(const char *address)
{
	char path[128];
	u8 config[4096];
	u32 at = 0x100, header;
	bool enabled = false;
	int file;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/config", address);
	file = open(path, O_RDONLY | O_CLOEXEC);
	CHECK(file >= 0 && read(file, config, sizeof(config)) == sizeof(config), "read of %s", path);
	close(file);
	while (at >= 0x100 && at <= sizeof(config) - 8) {
		memcpy(&header, config + at, sizeof(header));
		if ((header & 0xffff) == 0xf)
			enabled = config[at + 7] & 0x80;
		at = header >> 20;
	}
	return enabled;
}

// The log's next line of a refused transfer is of this one.
static void logged(const struct session *s, u64 iova, u32 command)
{
	struct timespec rest = { .tv_nsec = 1000000 };
	bool scalable = extended_capabilities() >> 43 & 1, written = command & FROM_EDU;
	char wanted[192], record[1024], *text;
	ssize_t size;
	int waited = 0;

	if (!strcmp(s->function.address, remote))
		return;
	do {
		size = read(kernel_log, record, sizeof(record) - 1);
		if (size < 0 && errno == EAGAIN) {
			CHECK(waited++ < 500, "the log does not tell of the transfer at %#lx", iova);
			nanosleep(&rest, NULL);
			continue;
		}
		CHECK(size > 0, "read of /dev/kmsg");
		record[size] = 0;
		record[strcspn(record, "\n")] = 0;
	} while (size < 0 || !strstr(record, "Request device"));
	text = strchr(record, ';') + 1;
	for (size_t kind = 0; kind < COUNT(reasons); kind++) {
		if (reasons[kind].scalable != scalable)
			continue;
		// Later kernels name the domain of the address too.
		for (int domain = 0; domain < 2; domain++) {
			snprintf(wanted, sizeof(wanted), "DMAR: [DMA %s NO_PASID] Request device [%s] fault addr %#lx %s",
				written ? "Write" : "Read", s->function.address + (domain ? 0 : 5), iova,
				written ? reasons[kind].written : reasons[kind].read);
			if (!strcmp(text, wanted)) {
				printf("  %s\n", text);
				return;
			}
		}
	}
	CHECK(false, "the log says %s; expected was %s", text, wanted);
}

// Puts a function into a container, which becomes one of type1 with the first.
static struct session enter(const struct function *function, int container, bool first)
{
	struct session s = { .function = *function, .container = container, .iommufd = -1 };

	s.group = open_group(function);
	CHECK(s.group >= 0, "open the group of %s", function->address);
	WORKS(ioctl(s.group, VFIO_GROUP_SET_CONTAINER, &container));
	if (first)
		WORKS(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	s.device = ioctl(s.group, VFIO_GROUP_GET_DEVICE_FD, function->address);
	CHECK(s.device >= 0, "GET_DEVICE_FD of %s", function->address);
	read_layout(&s);
	set_command(&s, 0x6);
	return s;
}

// Takes it out again.
static void leave(struct session *s)
{
	close(s->device);
	WORKS(ioctl(s->group, VFIO_GROUP_UNSET_CONTAINER));
	close(s->group);
}

static int container(void)
{
	int container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);

	CHECK(container >= 0, "open /dev/vfio/vfio");
	return container;
}

// Both devices reach the same pages, each by addresses of its own.
static void same_pages(const struct session *a, const struct session *b)
{
	u8 *memory = anonymous(3 * PAGE);
	int fd = event();

	fill(memory, PAGE, 1);
	memset(memory + PAGE, 0, 2 * PAGE);
	WORKS(map(a->container, HIGH, memory, 3 * PAGE, RW));
	WORKS(map(b->container, LOW, memory, 3 * PAGE, RW));
	edu_dma(a, HIGH, 0, PAGE, TO_EDU);
	edu_dma(a, HIGH + PAGE, 0, PAGE, FROM_EDU);
	CHECK(holds(memory + PAGE, PAGE, 1), "what the first device wrote");
	edu_dma(b, LOW + PAGE, 0, PAGE, TO_EDU);
	edu_dma(b, LOW + 2 * PAGE, 0, PAGE, FROM_EDU);
	CHECK(holds(memory + 2 * PAGE, PAGE, 1), "what the second device made of it");
	ok("two devices see the same pages");

	WORKS(set_event(b->device, VFIO_PCI_MSI_IRQ_INDEX, VFIO_IRQ_SET_ACTION_TRIGGER, fd));
	fill(memory, PAGE, 2);
	edu_dma(b, LOW, 0, PAGE, TO_EDU | THEN_IRQ);
	CHECK(events(fd, 2000) == 1, "no interrupt after a transfer");
	write32(b, EDU_IRQ_ACK, 0x100);
	WORKS(set_none(b->device, VFIO_PCI_MSI_IRQ_INDEX, VFIO_IRQ_SET_ACTION_TRIGGER, 0));
	close(fd);
	ok("a transfer with an interrupt");
}

// What the first device may not reach: what is mapped for the second, what is mapped for reading, what was unmapped.
static void refused_transfers(const struct session *a, const struct session *b)
{
	u8 *memory = anonymous(2 * PAGE);

	forget_log();
	refused_dma(a, LOW, 64, FROM_EDU);
	logged(a, LOW, FROM_EDU);
	refused_dma(b, HIGH, 64, TO_EDU);
	logged(b, HIGH, TO_EDU);
	ok("each device has addresses of its own");

	fill(memory, PAGE, 3);
	WORKS(map(a->container, HIGH + 0x1000000, memory, PAGE, RW));
	edu_dma(a, HIGH + 0x1000000, 0, PAGE, TO_EDU);
	CHECK(unmap(a->container, HIGH + 0x1000000, PAGE, 0) == PAGE, "unmap");
	memset(memory, 0, PAGE);
	refused_dma(a, HIGH + 0x1000000, PAGE, FROM_EDU);
	logged(a, HIGH + 0x1000000, FROM_EDU);
	CHECK(all_bytes(memory, PAGE, 0), "memory was written after its unmap");
	ok("memory that is unmapped is not reached");

	// The kernel's log is told of no more for some seconds; its interrupts are.
	WORKS(map(a->container, HIGH + 0x2000000, memory, PAGE, VFIO_DMA_MAP_FLAG_READ));
	fill(memory, PAGE, 4);
	edu_dma(a, HIGH + 0x2000000, 0, PAGE, TO_EDU);
	WORKS(map(a->container, HIGH + 0x3000000, memory + PAGE, PAGE, RW));
	edu_dma(a, HIGH + 0x3000000, 0, PAGE, FROM_EDU);
	CHECK(holds(memory + PAGE, PAGE, 4), "what was read of a mapping for reading");
	fill(memory, PAGE, 5);
	refused_dma(a, HIGH + 0x2000000, PAGE, FROM_EDU);
	CHECK(holds(memory, PAGE, 5), "a mapping for reading was written");
	ok("memory that is mapped for reading is not written");

	WORKS(unmap(a->container, 0, 0, VFIO_DMA_UNMAP_FLAG_ALL));
	WORKS(unmap(b->container, 0, 0, VFIO_DMA_UNMAP_FLAG_ALL));
	munmap(memory, 2 * PAGE);
}

// One address, page after page behind it: a translation that outlives its unmap moves the wrong page.
static void cycles(const struct session *s)
{
	const u32 count = 200;
	u8 *memory = anonymous(4 * PAGE), *back = anonymous(PAGE);
	u32 refused = 0;

	WORKS(map(s->container, LOW, back, PAGE, RW));
	for (u32 i = 0; i < count; i++) {
		u8 *page = memory + i % 4 * PAGE;

		fill(page, PAGE, i);
		WORKS(map(s->container, HIGH, page, PAGE, RW));
		edu_dma(s, HIGH, 0, PAGE, TO_EDU);
		edu_dma(s, LOW, 0, PAGE, FROM_EDU);
		CHECK(holds(back, PAGE, i), "cycle %u read another page", i);
		memset(page, 0, PAGE);
		edu_dma(s, HIGH, 0, PAGE, FROM_EDU);
		CHECK(holds(page, PAGE, i), "cycle %u wrote another page", i);
		CHECK(unmap(s->container, HIGH, PAGE, 0) == PAGE, "unmap");
		if (i % 10 == 9) {
			memset(page, 0, PAGE);
			refused_dma(s, HIGH, PAGE, FROM_EDU);
			CHECK(all_bytes(page, PAGE, 0), "cycle %u wrote an unmapped page", i);
			refused++;
		}
	}
	WORKS(unmap(s->container, 0, 0, VFIO_DMA_UNMAP_FLAG_ALL));
	munmap(memory, 4 * PAGE);
	munmap(back, PAGE);
	ok("%u cycles of mapping and unmapping one address, %u transfers refused", count, refused);
}

// Pages of 2 MiB, which the kernel maps as such, reached across their borders.
static void huge_pages(const struct session *s)
{
	const u64 size = 4 * HUGE_PAGE;
	u8 *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);

	CHECK(memory != MAP_FAILED, "mmap of huge pages");
	memset(memory, 0, size);
	WORKS(map(s->container, HUGE_IOVA, memory, size, RW));
	for (u64 border = HUGE_PAGE; border < size; border += HUGE_PAGE) {
		u8 *from = memory + border - 1000, *to = memory + border + HUGE_PAGE / 2 + 12;

		fill(from, 3000, border);
		edu_dma(s, HUGE_IOVA + border - 1000, 0, 3000, TO_EDU);
		edu_dma(s, HUGE_IOVA + border + HUGE_PAGE / 2 + 12, 0, 3000, FROM_EDU);
		CHECK(holds(to, 3000, border), "a transfer across a border of huge pages");
	}
	edu_dma(s, HUGE_IOVA + size - PAGE, 0, PAGE, TO_EDU);
	CHECK(unmap(s->container, HUGE_IOVA, size, 0) == (long long)size, "unmap");
	memset(memory, 6, size);
	// A page of the mapping that was not reached before, and one that was.
	refused_dma(s, HUGE_IOVA + HUGE_PAGE + 5 * PAGE, PAGE, FROM_EDU);
	refused_dma(s, HUGE_IOVA + size - PAGE, PAGE, FROM_EDU);
	CHECK(all_bytes(memory + HUGE_PAGE, HUGE_PAGE, 6), "memory was written after its unmap");
	CHECK(all_bytes(memory + size - PAGE, PAGE, 6), "memory was written after its unmap");
	munmap(memory, size);
	ok("huge pages");
}

// Two pages whose tables have only the top in common: the kernel invalidates more than a range of pages for them.
static void far_tables(const struct session *s)
{
	u8 *memory = anonymous(2 * PAGE);

	WORKS(map(s->container, HUGE_IOVA - PAGE, memory, 2 * PAGE, RW));
	fill(memory, PAGE, 8);
	memset(memory + PAGE, 0, PAGE);
	edu_dma(s, HUGE_IOVA - PAGE, 0, PAGE, TO_EDU);
	edu_dma(s, HUGE_IOVA, 0, PAGE, FROM_EDU);
	CHECK(holds(memory + PAGE, PAGE, 8), "a mapping across tables");
	// What is cached is then the right to write, too.
	edu_dma(s, HUGE_IOVA - PAGE, 0, PAGE, FROM_EDU);
	CHECK(unmap(s->container, HUGE_IOVA - PAGE, 2 * PAGE, 0) == 2 * PAGE, "unmap");
	memset(memory, 8, 2 * PAGE);
	refused_dma(s, HUGE_IOVA - PAGE, PAGE, FROM_EDU);
	refused_dma(s, HUGE_IOVA, PAGE, FROM_EDU);
	CHECK(all_bytes(memory, 2 * PAGE, 8), "memory was written after its unmap");
	munmap(memory, 2 * PAGE);
	ok("a mapping across tables");
}

// Thousands of mappings that share nothing.
static void many_mappings(const struct session *s)
{
	const u32 count = 4096;
	const u64 stride = 0x3001000;
	u8 *memory = anonymous(count * PAGE), *back = anonymous(PAGE);

	WORKS(map(s->container, LOW, back, PAGE, RW));
	for (u32 i = 0; i < count; i++) {
		memset(memory + i * PAGE, 0, PAGE);
		memcpy(memory + i * PAGE + 100, &i, sizeof(i));
		WORKS(map(s->container, HIGH + i * stride, memory + i * PAGE, PAGE, RW));
	}
	for (u32 i = 0; i < count; i += 61) {
		u32 seen;

		edu_dma(s, HIGH + i * stride + 100, 0, sizeof(i), TO_EDU);
		edu_dma(s, LOW, 0, sizeof(i), FROM_EDU);
		memcpy(&seen, back, sizeof(seen));
		CHECK(seen == i, "mapping %u leads to page %u", i, seen);
	}
	CHECK(unmap(s->container, 0, 0, VFIO_DMA_UNMAP_FLAG_ALL) == (count + 1) * (long long)PAGE, "unmap of all");
	refused_dma(s, HIGH + 61 * stride, PAGE, FROM_EDU);
	munmap(memory, count * PAGE);
	munmap(back, PAGE);
	ok("%u mappings", count);
}

// Each device in each of two containers, in turn: it reaches what is mapped there and nothing else.
static void moves(const struct function *functions)
{
	u8 *memory = anonymous(4 * PAGE);
	int containers[2] = { container(), container() };

	for (u32 round = 0; round < 8; round++) {
		struct session s[2];

		for (u32 i = 0; i < 2; i++) {
			u32 place = (i + round) % 2;
			u8 *common = memory + place * 2 * PAGE;

			s[i] = enter(&functions[i], containers[place], true);
			fill(common, PAGE, 100 * round + place);
			memset(common + PAGE, 0, PAGE);
			WORKS(map(containers[place], HIGH, common, PAGE, RW));
			WORKS(map(containers[place], LOW + place * PAGE, common + PAGE, PAGE, RW));
		}
		for (u32 i = 0; i < 2; i++) {
			u32 place = (i + round) % 2;
			u8 *common = memory + place * 2 * PAGE;

			edu_dma(&s[i], HIGH, 0, PAGE, TO_EDU);
			edu_dma(&s[i], LOW + place * PAGE, 0, PAGE, FROM_EDU);
			CHECK(holds(common + PAGE, PAGE, 100 * round + place), "device %u in container %u, move %u",
				i, place, round);
			refused_dma(&s[i], LOW + (1 - place) * PAGE, PAGE, FROM_EDU);
		}
		leave(&s[0]);
		leave(&s[1]);
	}
	ok("devices move between containers");

	struct session a = enter(&functions[0], containers[0], true);

	fill(memory, PAGE, 7);
	WORKS(map(containers[0], HIGH, memory, 2 * PAGE, RW));
	for (u32 round = 0; round < 4; round++) {
		struct session b = enter(&functions[1], containers[0], false);

		memset(memory + PAGE, 0, PAGE);
		edu_dma(&b, HIGH, 0, PAGE, TO_EDU);
		edu_dma(&b, HIGH + PAGE, 0, PAGE, FROM_EDU);
		CHECK(holds(memory + PAGE, PAGE, 7), "a device that joins a container sees what is mapped");
		leave(&b);
		b = enter(&functions[1], containers[1], true);
		WORKS(map(containers[1], LOW, memory + 2 * PAGE, PAGE, RW));
		edu_dma(&b, LOW, 0, PAGE, TO_EDU);
		refused_dma(&b, HIGH, PAGE, FROM_EDU);
		leave(&b);
		edu_dma(&a, HIGH + PAGE, 0, PAGE, TO_EDU);
	}
	CHECK(holds(memory, PAGE, 7), "memory of a container that was left was written");
	leave(&a);
	close(containers[0]);
	close(containers[1]);
	munmap(memory, 4 * PAGE);
	ok("a device joins another's container and leaves it");
}

void assigned(void)
{
	struct function functions[2];
	struct session a, b;

	CHECK(find_edus(functions, COUNT(functions)) == COUNT(functions), "two edus are needed");
	a = enter(&functions[0], container(), true);
	b = enter(&functions[1], container(), true);
	check_liveness(&a);
	check_liveness(&b);
	if (extended_capabilities() >> 2 & 1)
		CHECK(caches_translations(functions[0].address), "ATS is not enabled");
	same_pages(&a, &b);
	refused_transfers(&a, &b);
	cycles(&a);
	huge_pages(&b);
	far_tables(&a);
	many_mappings(&b);
	leave(&a);
	leave(&b);
	close(a.container);
	close(b.container);
	moves(functions);
	printf("refused %u\n", refusals);
}

void assigned_remote(void)
{
	struct function functions[2];

	CHECK(find_edus(functions, COUNT(functions)) == COUNT(functions), "two edus are needed");
	strcpy(remote, functions[1].address);
	assigned();
}
