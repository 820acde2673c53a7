// What type1 refuses, and with which errno; then dirty pages and moved addresses.
#include "client.h"

#include <sys/mman.h>

static void mapping_errors(const struct session *s)
{
	u8 *memory = anonymous(16 * PAGE);
	int c = s->container;
	u64 misaligned = 3 * PAGE + 1;

	REFUSED(EINVAL, map(c, IOVA, memory, 0, RW));
	REFUSED(EOVERFLOW, map(c, ~0ul - PAGE + 1, memory, 2 * PAGE, RW));
	REFUSED(EOVERFLOW, map(c, IOVA, (void *)(~0ul - PAGE + 1), 2 * PAGE, RW));
	REFUSED(EINVAL, map(c, IOVA, memory, PAGE, 0));
	REFUSED(EINVAL, map(c, IOVA, memory, PAGE, RW | 1u << 31));
	REFUSED(EINVAL, map(c, IOVA + 1, memory, PAGE, RW));
	REFUSED(EINVAL, map(c, IOVA, memory + 1, PAGE, RW));
	REFUSED(EINVAL, map(c, IOVA, memory, misaligned, RW));
	REFUSED(EINVAL, map(c, 0xfee00000, memory, PAGE, RW));
	REFUSED(EINVAL, map(c, 0xfee00000 - PAGE, memory, 2 * PAGE, RW));
	REFUSED(EINVAL, map(c, 1ul << 63, memory, PAGE, RW));
	ok("MAP_DMA of impossible ranges");

	WORKS(map(c, IOVA + 4 * PAGE, memory, 4 * PAGE, RW));
	REFUSED(EEXIST, map(c, IOVA + 4 * PAGE, memory, 4 * PAGE, RW));
	REFUSED(EEXIST, map(c, IOVA + 7 * PAGE, memory, 4 * PAGE, RW));
	REFUSED(EEXIST, map(c, IOVA + PAGE, memory, 4 * PAGE, RW));
	REFUSED(EEXIST, map(c, IOVA + 5 * PAGE, memory, PAGE, RW));
	REFUSED(EEXIST, map(c, IOVA, memory, 16 * PAGE, RW));
	WORKS(map(c, IOVA, memory, 4 * PAGE, RW));
	WORKS(map(c, IOVA + 8 * PAGE, memory, 8 * PAGE, RW));
	CHECK(unmap(c, IOVA, 16 * PAGE, 0) == 16 * PAGE, "unmap of three at once");
	ok("MAP_DMA of overlaps");
}

static void bad_memory(const struct session *s)
{
	u8 *memory = anonymous(4 * PAGE);
	int c = s->container;

	munmap(memory + PAGE, PAGE);
	REFUSED(EFAULT, map(c, IOVA, memory + PAGE, PAGE, RW));
	REFUSED(EFAULT, map(c, IOVA, memory, 3 * PAGE, RW));
	CHECK(!mprotect(memory + 2 * PAGE, PAGE, PROT_READ), "mprotect");
	REFUSED(EFAULT, map(c, IOVA, memory + 2 * PAGE, PAGE, RW));
	REFUSED(EFAULT, map(c, IOVA, memory + 2 * PAGE, PAGE, VFIO_DMA_MAP_FLAG_WRITE));
	WORKS(map(c, IOVA, memory + 2 * PAGE, PAGE, VFIO_DMA_MAP_FLAG_READ));
	CHECK(unmap(c, IOVA, PAGE, 0) == PAGE, "unmap of read-only memory");
	CHECK(!mprotect(memory + 3 * PAGE, PAGE, PROT_NONE), "mprotect");
	REFUSED(EFAULT, map(c, IOVA, memory + 3 * PAGE, PAGE, VFIO_DMA_MAP_FLAG_READ));
	CHECK(unmap(c, 0, 0, VFIO_DMA_UNMAP_FLAG_ALL) == 0, "a refused MAP_DMA left something");
	ok("MAP_DMA of bad memory");
}

static void unmapping(const struct session *s)
{
	u8 *memory = anonymous(8 * PAGE);
	int c = s->container;

	WORKS(map(c, IOVA, memory, 4 * PAGE, RW));
	WORKS(map(c, IOVA + 4 * PAGE, memory + 4 * PAGE, 4 * PAGE, RW));
	REFUSED(EINVAL, unmap(c, IOVA, PAGE, 0));
	REFUSED(EINVAL, unmap(c, IOVA + PAGE, 3 * PAGE, 0));
	REFUSED(EINVAL, unmap(c, IOVA, 6 * PAGE, 0));
	REFUSED(EINVAL, unmap(c, IOVA, 0, 0));
	REFUSED(EINVAL, unmap(c, IOVA + 1, PAGE, 0));
	REFUSED(EINVAL, unmap(c, IOVA, PAGE + 1, 0));
	REFUSED(EINVAL, unmap(c, IOVA, 4 * PAGE, 1u << 31));
	REFUSED(EINVAL, unmap(c, IOVA, 0, VFIO_DMA_UNMAP_FLAG_ALL));
	REFUSED(EINVAL, unmap(c, 0, PAGE, VFIO_DMA_UNMAP_FLAG_ALL));
	CHECK(unmap(c, IOVA + 0x100000, PAGE, 0) == 0, "unmap of nothing");
	CHECK(unmap(c, IOVA - PAGE, 5 * PAGE, 0) == 4 * PAGE, "unmap of more than there is");
	CHECK(unmap(c, 0, 0, VFIO_DMA_UNMAP_FLAG_ALL) == 4 * PAGE, "unmap of all");
	CHECK(unmap(c, 0, 0, VFIO_DMA_UNMAP_FLAG_ALL) == 0, "unmap of all that is left");
	ok("UNMAP_DMA");
}

static void sizes_and_pointers(const struct session *s)
{
	struct vfio_iommu_type1_dma_map request = { .flags = RW, .iova = IOVA, .size = PAGE,
		.vaddr = (uintptr_t)anonymous(PAGE) };
	struct vfio_device_info *edge;
	u8 *memory = anonymous(2 * PAGE);

	for (u32 size = 0; size < sizeof(request); size++) {
		request.argsz = size;
		REFUSED(EINVAL, ioctl(s->container, VFIO_IOMMU_MAP_DMA, &request));
	}
	request.argsz = ~0u;
	WORKS(ioctl(s->container, VFIO_IOMMU_MAP_DMA, &request));
	CHECK(unmap(s->container, IOVA, PAGE, 0) == PAGE, "unmap");
	ok("argsz of every size");

	munmap(memory + PAGE, PAGE);
	REFUSED(EFAULT, ioctl(s->container, VFIO_IOMMU_MAP_DMA, NULL));
	REFUSED(EFAULT, ioctl(s->container, VFIO_IOMMU_MAP_DMA, memory + PAGE));
	REFUSED(EFAULT, ioctl(s->container, VFIO_IOMMU_MAP_DMA, memory + PAGE - 8));
	REFUSED(EFAULT, ioctl(s->container, VFIO_IOMMU_MAP_DMA, (void *)~0ul));
	REFUSED(EFAULT, ioctl(s->device, VFIO_DEVICE_GET_INFO, memory + PAGE));
	REFUSED(EFAULT, ioctl(s->group, VFIO_GROUP_GET_STATUS, memory + PAGE));
	REFUSED(EFAULT, ioctl(s->device, VFIO_DEVICE_SET_IRQS, memory + PAGE));
	edge = (void *)(memory + PAGE - 16);
	edge->argsz = 16;
	WORKS(ioctl(s->device, VFIO_DEVICE_GET_INFO, edge));
	CHECK(edge->num_irqs == VFIO_PCI_NUM_IRQS, "a structure at the end of memory");
	CHECK(pread(s->device, memory + PAGE - 2, 2, s->config) == 2, "a read at the end of memory");
	REFUSED(EFAULT, pread(s->device, memory + PAGE, 4, s->config));
	ok("pointers to nowhere");
}

static int dirty(int container, u32 flags, u64 iova, u64 size, u64 *bits)
{
	struct {
		struct vfio_iommu_type1_dirty_bitmap dirty;
		struct vfio_iommu_type1_dirty_bitmap_get get;
	} request = {
		.dirty = { .argsz = sizeof(request.dirty), .flags = flags },
		.get = {
			.iova = iova,
			.size = size,
			.bitmap = { .pgsize = PAGE, .size = sizeof(*bits), .data = (void *)bits },
		},
	};

	if (flags & VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP)
		request.dirty.argsz = sizeof(request);
	return ioctl(container, VFIO_IOMMU_DIRTY_PAGES, &request);
}

static void dirty_pages(const struct session *s)
{
	u32 start = VFIO_IOMMU_DIRTY_PAGES_FLAG_START, stop = VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP;
	u32 get = VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP;
	u64 bits = 0;

	WORKS(map(s->container, IOVA, anonymous(8 * PAGE), 8 * PAGE, RW));
	REFUSED(EINVAL, dirty(s->container, get, IOVA, 8 * PAGE, &bits));
	REFUSED(EINVAL, dirty(s->container, start | stop, 0, 0, NULL));
	WORKS(dirty(s->container, start, 0, 0, NULL));
	WORKS(dirty(s->container, start, 0, 0, NULL));
	WORKS(dirty(s->container, get, IOVA, 8 * PAGE, &bits));
	CHECK((bits & 0xff) == 0xff, "behind an IOMMU every page is dirty: %#lx", bits);
	REFUSED(EINVAL, dirty(s->container, get, IOVA, 4 * PAGE, &bits));
	WORKS(dirty(s->container, stop, 0, 0, NULL));
	CHECK(unmap(s->container, IOVA, 8 * PAGE, 0) == 8 * PAGE, "unmap");
	ok("dirty pages");
}

static void moved_memory(const struct session *s)
{
	u8 *memory = file_memory(2 * PAGE, NULL), *moved;
	u32 vaddr = VFIO_DMA_MAP_FLAG_VADDR;

	if (ioctl(s->container, VFIO_CHECK_EXTENSION, VFIO_UPDATE_VADDR) != 1) {
		ok("moved memory (not offered)");
		return;
	}
	WORKS(map(s->container, IOVA, memory, 2 * PAGE, RW));
	REFUSED(EINVAL, map(s->container, IOVA, memory, 2 * PAGE, vaddr));
	CHECK(unmap(s->container, IOVA, 2 * PAGE, VFIO_DMA_UNMAP_FLAG_VADDR) == 2 * PAGE, "unmap of the address");
	moved = mremap(memory, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
		anonymous(2 * PAGE));
	CHECK(moved != MAP_FAILED, "mremap");
	REFUSED(EINVAL, map(s->container, IOVA, moved, PAGE, vaddr));
	REFUSED(ENOENT, map(s->container, IOVA + 0x100000, moved, PAGE, vaddr));
	WORKS(map(s->container, IOVA, moved, 2 * PAGE, vaddr));
	fill(moved, PAGE, 12);
	edu_dma(s, IOVA, 0, PAGE, TO_EDU);
	edu_dma(s, IOVA + PAGE, 0, PAGE, FROM_EDU);
	CHECK(holds(moved + PAGE, PAGE, 12), "a transfer after the move");
	CHECK(unmap(s->container, IOVA, 2 * PAGE, 0) == 2 * PAGE, "unmap");
	ok("moved memory");
}

void rules(void)
{
	struct session s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);

	mapping_errors(&s);
	bad_memory(&s);
	unmapping(&s);
	sizes_and_pointers(&s);
	dirty_pages(&s);
	moved_memory(&s);
	close_session(&s);
}
