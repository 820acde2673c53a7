// What edu writes by way of a page table that tracks it; the machine's unit has to be able to.
#include "client.h"

#include <fcntl.h>

static u64 look(const struct session *s, u32 hwpt, u32 flags)
{
	u64 bits = 0;
	struct iommu_hwpt_get_dirty_bitmap request = { .size = sizeof(request), .hwpt_id = hwpt,
		.flags = flags, .iova = IOVA, .length = 16 * PAGE, .page_size = PAGE,
		.data = (uintptr_t)&bits };

	WORKS(ioctl(s->iommufd, IOMMU_HWPT_GET_DIRTY_BITMAP, &request));
	return bits;
}

static void track(const struct session *s, u32 hwpt, u32 flags)
{
	struct iommu_hwpt_set_dirty_tracking request = { .size = sizeof(request), .hwpt_id = hwpt,
		.flags = flags };

	WORKS(ioctl(s->iommufd, IOMMU_HWPT_SET_DIRTY_TRACKING, &request));
}

void tracking(void)
{
	struct function edu = find_edu();
	struct session s = { .container = -1, .group = -1 };
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind) };
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach) };
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	struct iommu_hwpt_alloc hwpt = { .size = sizeof(hwpt), .flags = IOMMU_HWPT_ALLOC_DIRTY_TRACKING };
	struct iommu_hw_info info = { .size = sizeof(info) };
	struct iommu_ioas_map map = { .size = sizeof(map), .length = 16 * PAGE, .iova = IOVA,
		.user_va = (uintptr_t)anonymous(16 * PAGE),
		.flags = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_FIXED_IOVA };
	u64 bits;

	s.iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	s.device = open_cdev(&edu);
	CHECK(s.iommufd >= 0 && s.device >= 0, "open");
	bind.iommufd = s.iommufd;
	WORKS(ioctl(s.device, VFIO_DEVICE_BIND_IOMMUFD, &bind));
	info.dev_id = bind.out_devid;
	WORKS(ioctl(s.iommufd, IOMMU_GET_HW_INFO, &info));
	CHECK(info.out_capabilities & IOMMU_HW_CAP_DIRTY_TRACKING, "capabilities %#llx",
		(unsigned long long)info.out_capabilities);
	WORKS(ioctl(s.iommufd, IOMMU_IOAS_ALLOC, &alloc));
	s.ioas = map.ioas_id = hwpt.pt_id = alloc.out_ioas_id;
	hwpt.dev_id = bind.out_devid;
	WORKS(ioctl(s.iommufd, IOMMU_HWPT_ALLOC, &hwpt));
	attach.pt_id = hwpt.out_hwpt_id;
	WORKS(ioctl(s.device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach));
	WORKS(ioctl(s.iommufd, IOMMU_IOAS_MAP, &map));
	read_layout(&s);
	set_command(&s, 0x6);
	edu_dma(&s, IOVA, 0, PAGE, FROM_EDU);
	CHECK((bits = look(&s, hwpt.out_hwpt_id, 0)) == 0, "%#lx before tracking", bits);
	track(&s, hwpt.out_hwpt_id, IOMMU_HWPT_DIRTY_TRACKING_ENABLE);
	edu_dma(&s, IOVA + 5 * PAGE + 100, 0, PAGE, FROM_EDU);
	edu_dma(&s, IOVA + 9 * PAGE, 0, PAGE, TO_EDU);
	bits = look(&s, hwpt.out_hwpt_id, IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR);
	CHECK(bits == 0x60, "%#lx, kept", bits);
	CHECK((bits = look(&s, hwpt.out_hwpt_id, 0)) == 0x60, "%#lx", bits);
	CHECK((bits = look(&s, hwpt.out_hwpt_id, 0)) == 0, "%#lx after they were read", bits);
	ok("what was written is dirty, and nothing else");
	track(&s, hwpt.out_hwpt_id, 0);
	edu_dma(&s, IOVA, 0, PAGE, FROM_EDU);
	CHECK((bits = look(&s, hwpt.out_hwpt_id, 0)) == 0, "%#lx when it is off", bits);
	close_session(&s);
	ok("tracking ends");
}
