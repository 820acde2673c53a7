// edu moves bytes to and from the program's memory, and only where and while it is mapped.
#include "client.h"

#include <pthread.h>
#include <sys/mman.h>

// Moves a page through edu: from `source` to `destination`, which must then hold the same.
static void round_trip(const struct session *s, void *source, void *destination, u64 from, u64 to,
	u32 seed)
{
	fill(source, PAGE, seed);
	memset(destination, 0, PAGE);
	edu_dma(s, from, 0, PAGE, TO_EDU);
	edu_dma(s, to, 0, PAGE, FROM_EDU);
	CHECK(holds(destination, PAGE, seed), "what came back is not what was sent");
	CHECK(holds(source, PAGE, seed), "the source was changed");
}

static void kinds_of_memory(const struct session *s)
{
	u8 *private = anonymous(2 * PAGE), *shared = file_memory(2 * PAGE, NULL);
	int fd = event();

	WORKS(map(s->container, IOVA, private, 2 * PAGE, RW));
	round_trip(s, private, private + PAGE, IOVA, IOVA + PAGE, 1);
	ok("private memory");

	WORKS(map(s->container, IOVA + 0x10000, shared, 2 * PAGE, RW));
	round_trip(s, shared, shared + PAGE, IOVA + 0x10000, IOVA + 0x11000, 2);
	round_trip(s, private, shared, IOVA, IOVA + 0x10000, 3);
	ok("shared memory");

	WORKS(set_event(s->device, VFIO_PCI_MSI_IRQ_INDEX, VFIO_IRQ_SET_ACTION_TRIGGER, fd));
	fill(private, 64, 4);
	edu_dma(s, IOVA, 0, 64, TO_EDU | THEN_IRQ);
	CHECK(events(fd, 2000) == 1, "no interrupt after the transfer");
	CHECK(read32(s, EDU_IRQ_STATUS) & 0x100, "edu's interrupt status is %#x", read32(s, EDU_IRQ_STATUS));
	write32(s, EDU_IRQ_ACK, 0x100);
	WORKS(set_none(s->device, VFIO_PCI_MSI_IRQ_INDEX, VFIO_IRQ_SET_ACTION_TRIGGER, 0));
	close(fd);
	ok("interrupt after a transfer");

	CHECK(unmap(s->container, 0, 0, VFIO_DMA_UNMAP_FLAG_ALL) == 4 * PAGE, "unmap of all");
	munmap(private, 2 * PAGE);
	munmap(shared, 2 * PAGE);
}

static void pieces(const struct session *s)
{
	u8 *first = anonymous(PAGE), *second = file_memory(PAGE, NULL), *back = anonymous(3 * PAGE);
	u8 sent[512];

	WORKS(map(s->container, IOVA, first, PAGE, RW));
	WORKS(map(s->container, IOVA + PAGE, second, PAGE, RW));
	WORKS(map(s->container, IOVA + 2 * PAGE, back, 3 * PAGE, RW));
	fill(sent, sizeof(sent), 5);
	memcpy(first + PAGE - 200, sent, 200);
	memcpy(second, sent + 200, 312);
	edu_dma(s, IOVA + PAGE - 200, 1000, 512, TO_EDU);
	edu_dma(s, IOVA + 3 * PAGE - 7, 1000, 512, FROM_EDU);
	CHECK(!memcmp(back + PAGE - 7, sent, 512), "a transfer across two mappings");
	CHECK(all_bytes(back, PAGE - 7, 0) && all_bytes(back + PAGE + 505, PAGE, 0),
		"bytes beside the transfer were changed");
	WORKS(unmap(s->container, 0, 0, VFIO_DMA_UNMAP_FLAG_ALL));
	ok("transfers across mappings, at odd addresses");
}

static void refused_transfers(const struct session *s)
{
	u8 *memory = anonymous(2 * PAGE), *good = anonymous(PAGE);

	WORKS(map(s->container, IOVA, memory, PAGE, VFIO_DMA_MAP_FLAG_READ));
	WORKS(map(s->container, IOVA + 0x30000, memory + PAGE, PAGE, VFIO_DMA_MAP_FLAG_WRITE));
	WORKS(map(s->container, IOVA + 0x20000, good, PAGE, RW));
	fill(good, PAGE, 6);
	edu_dma(s, IOVA + 0x20000, 0, PAGE, TO_EDU);

	edu_dma(s, IOVA, 0, PAGE, FROM_EDU);
	CHECK(all_bytes(memory, PAGE, 0), "a read-only mapping was written");
	ok("read-only mapping");

	fill(memory + PAGE, PAGE, 7);
	edu_dma(s, IOVA + 0x30000, 0, PAGE, TO_EDU);
	edu_dma(s, IOVA + 0x20000, 0, PAGE, FROM_EDU);
	CHECK(!holds(good, PAGE, 7), "a write-only mapping was read");
	ok("write-only mapping");

	edu_dma(s, IOVA + 0x80000, 0, PAGE, FROM_EDU);
	edu_dma(s, IOVA + 0x80000, 0, PAGE, TO_EDU);
	ok("address never mapped");

	memset(good, 0, PAGE);
	CHECK(unmap(s->container, IOVA + 0x20000, PAGE, 0) == PAGE, "unmap");
	edu_dma(s, IOVA + 0x20000, 0, PAGE, FROM_EDU);
	CHECK(all_bytes(good, PAGE, 0), "memory was written after its UNMAP");
	ok("address no longer mapped");

	WORKS(map(s->container, IOVA + 0x20000, good, PAGE, RW));
	fill(memory, PAGE, 8);
	edu_dma(s, IOVA, 0, PAGE, TO_EDU);
	set_command(s, 0x2);
	edu_dma(s, IOVA + 0x20000, 0, PAGE, FROM_EDU);
	set_command(s, 0x6);
	CHECK(all_bytes(good, PAGE, 0), "memory was written without bus mastering");
	edu_dma(s, IOVA + 0x20000, 0, PAGE, FROM_EDU);
	CHECK(holds(good, PAGE, 8), "a good transfer after all the bad ones");
	WORKS(unmap(s->container, 0, 0, VFIO_DMA_UNMAP_FLAG_ALL));
	ok("bus mastering off");
}

// Memory that the program takes away without telling the container.
static void vanished_memory(const struct session *s)
{
	int file;
	u8 *private = anonymous(PAGE), *shared = file_memory(PAGE, &file), *again;
	u8 *window = anonymous(PAGE);

	WORKS(map(s->container, IOVA, private, PAGE, RW));
	WORKS(map(s->container, IOVA + PAGE, shared, PAGE, RW));
	WORKS(map(s->container, IOVA + 2 * PAGE, window, PAGE, RW));
	fill(window, PAGE, 9);
	edu_dma(s, IOVA + 2 * PAGE, 0, PAGE, TO_EDU);

	munmap(private, PAGE);
	edu_dma(s, IOVA, 0, PAGE, FROM_EDU);
	again = mmap(private, PAGE, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	CHECK(again == private, "mmap at the old place");
	edu_dma(s, IOVA, 0, PAGE, FROM_EDU);
	CHECK(all_bytes(again, PAGE, 0), "new memory at the old place was written");
	ok("private memory that was unmapped is not reached");

	CHECK(unmap(s->container, IOVA, PAGE, 0) == PAGE, "unmap of what has vanished");
	WORKS(map(s->container, IOVA, again, PAGE, RW));
	edu_dma(s, IOVA, 0, PAGE, FROM_EDU);
	CHECK(holds(again, PAGE, 9), "the new mapping does not work");
	CHECK(!madvise(again, PAGE, MADV_DONTNEED), "madvise");
	edu_dma(s, IOVA, 0, PAGE, FROM_EDU);
	CHECK(all_bytes(again, PAGE, 0), "memory was written after MADV_DONTNEED");
	ok("private memory that was given back is not reached");

	munmap(shared, PAGE);
	edu_dma(s, IOVA + PAGE, 0, PAGE, FROM_EDU);
	shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	CHECK(shared != MAP_FAILED, "mmap of the file again");
	CHECK(holds(shared, PAGE, 9), "shared memory stays pinned after munmap");
	WORKS(unmap(s->container, 0, 0, VFIO_DMA_UNMAP_FLAG_ALL));
	close(file);
	ok("shared memory stays pinned");
}

static void nothing(void *unused)
{
	(void)unused;
}

// A fork makes private memory copy-on-write; the device keeps working on the parent's.
static void memory_after_fork(const struct session *s)
{
	u8 *memory = anonymous(2 * PAGE);

	WORKS(map(s->container, IOVA, memory, 2 * PAGE, RW));
	memset(memory, 1, 2 * PAGE);
	in_child(nothing, NULL);
	round_trip(s, memory, memory + PAGE, IOVA, IOVA + PAGE, 10);
	WORKS(unmap(s->container, 0, 0, VFIO_DMA_UNMAP_FLAG_ALL));
	ok("memory after a fork");
}

struct job {
	const struct session *session;
	u8 *memory;
};

static void *map_in_thread(void *argument)
{
	struct job *job = argument;

	job->memory = anonymous(2 * PAGE);
	WORKS(map(job->session->container, IOVA, job->memory, 2 * PAGE, RW));
	return NULL;
}

static void thread_that_mapped_is_gone(const struct session *s)
{
	struct job job = { .session = s };
	pthread_t thread;

	CHECK(!pthread_create(&thread, NULL, map_in_thread, &job), "pthread_create");
	pthread_join(thread, NULL);
	round_trip(s, job.memory, job.memory + PAGE, IOVA, IOVA + PAGE, 11);
	WORKS(unmap(s->container, 0, 0, VFIO_DMA_UNMAP_FLAG_ALL));
	ok("memory mapped by a thread that has ended");
}

void dma(void)
{
	struct session s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);

	kinds_of_memory(&s);
	pieces(&s);
	refused_transfers(&s);
	vanished_memory(&s);
	memory_after_fork(&s);
	thread_that_mapped_is_gone(&s);
	close_session(&s);
}
