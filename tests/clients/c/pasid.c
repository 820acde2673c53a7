// Address spaces by PASID: edu reaches with each what is mapped for it. The machine's unit has to tell
// PASIDs apart, and edu to send them.
#include "client.h"

#include <errno.h>
#include <fcntl.h>

// The register that QEMU's edu does not have.
enum { EDU_DMA_PASID = 0xa0 };
#define WITH_PASID (1u << 31)

// As in newer headers than the system's may be.
enum { ALLOC_PASID = 1 << 3 };
struct attach_pasid {
	u32 argsz, flags, pt_id, pasid;
};
struct detach_pasid {
	u32 argsz, flags, pasid;
};

static int attach(const struct session *s, u32 pasid, u32 pt)
{
	struct attach_pasid request = { .argsz = sizeof(request), .flags = 1, .pt_id = pt, .pasid = pasid };

	return ioctl(s->device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &request);
}

// A page table of an address space of its own, which shows a page at IOVA.
static u32 table(const struct session *s, u32 device, void *page, u32 flags)
{
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	struct iommu_hwpt_alloc hwpt = { .size = sizeof(hwpt), .flags = flags, .dev_id = device };
	struct iommu_ioas_map map = { .size = sizeof(map), .length = PAGE, .iova = IOVA,
		.user_va = (uintptr_t)page,
		.flags = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_FIXED_IOVA };

	WORKS(ioctl(s->iommufd, IOMMU_IOAS_ALLOC, &alloc));
	map.ioas_id = hwpt.pt_id = alloc.out_ioas_id;
	WORKS(ioctl(s->iommufd, IOMMU_IOAS_MAP, &map));
	WORKS(ioctl(s->iommufd, IOMMU_HWPT_ALLOC, &hwpt));
	return hwpt.out_hwpt_id;
}

void pasid(void)
{
	struct function edu = find_edu();
	struct session s = { .container = -1, .group = -1 };
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind) };
	struct vfio_device_attach_iommufd_pt own = { .argsz = sizeof(own) };
	struct detach_pasid detach = { .argsz = sizeof(detach), .flags = 1, .pasid = 5 };
	struct iommu_hw_info info = { .size = sizeof(info) };
	void *pages[3];
	u32 tables[3], plain;

	s.iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	s.device = open_cdev(&edu);
	CHECK(s.iommufd >= 0 && s.device >= 0, "open");
	bind.iommufd = s.iommufd;
	WORKS(ioctl(s.device, VFIO_DEVICE_BIND_IOMMUFD, &bind));
	info.dev_id = bind.out_devid;
	WORKS(ioctl(s.iommufd, IOMMU_GET_HW_INFO, &info));
	CHECK(info.out_max_pasid_log2 == 10, "%u bits", info.out_max_pasid_log2);
	for (int i = 0; i < 3; i++) {
		pages[i] = anonymous(PAGE);
		tables[i] = table(&s, bind.out_devid, pages[i], ALLOC_PASID);
	}
	plain = table(&s, bind.out_devid, pages[0], 0);
	CHECK(attach(&s, 5, plain) < 0 && errno == EINVAL, "a page table that is not for PASIDs");
	CHECK(attach(&s, 1 << 10, tables[1]) < 0 && errno == EINVAL, "a PASID of 11 bits");
	own.pt_id = tables[0];
	WORKS(ioctl(s.device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &own));
	WORKS(attach(&s, 5, tables[1]));
	WORKS(attach(&s, 6, tables[2]));
	ok("page tables by PASID");

	read_layout(&s);
	set_command(&s, 0x6);
	fill(pages[0], PAGE, 1);
	fill(pages[1], PAGE, 2);
	edu_dma(&s, IOVA, 0, PAGE, TO_EDU);
	write32(&s, EDU_DMA_PASID, WITH_PASID | 6);
	edu_dma(&s, IOVA, 0, PAGE, FROM_EDU);
	CHECK(holds(pages[2], PAGE, 1), "what had no PASID did not reach PASID 6");
	write32(&s, EDU_DMA_PASID, WITH_PASID | 5);
	edu_dma(&s, IOVA, 0, PAGE, TO_EDU);
	write32(&s, EDU_DMA_PASID, 0);
	edu_dma(&s, IOVA, 0, PAGE, FROM_EDU);
	CHECK(holds(pages[0], PAGE, 2), "what was PASID 5's did not come without one");
	ok("each PASID reaches its own memory");

	WORKS(ioctl(s.device, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach));
	WORKS(ioctl(s.device, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach));
	write32(&s, EDU_DMA_PASID, WITH_PASID | 5);
	edu_dma(&s, IOVA, 0, PAGE, FROM_EDU);
	CHECK(holds(pages[1], PAGE, 2), "a PASID without a page table wrote");
	close_session(&s);
	ok("a PASID without a page table reaches nothing");
}
