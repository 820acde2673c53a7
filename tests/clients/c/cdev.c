// The device's own node and /dev/iommu: bind, address space, attach, transfers, and back.
#include "client.h"

#include <fcntl.h>
#include <sys/mman.h>

static int ioas_map(int iommufd, u32 ioas, u64 *iova, void *memory, u64 size, u32 flags)
{
	struct iommu_ioas_map request = {
		.size = sizeof(request),
		.flags = flags,
		.ioas_id = ioas,
		.user_va = (uintptr_t)memory,
		.length = size,
		.iova = *iova,
	};
	int result = ioctl(iommufd, IOMMU_IOAS_MAP, &request);

	*iova = request.iova;
	return result;
}

#define READ_WRITE (IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE)

static int map_at(const struct session *s, u64 iova, void *memory, u64 size)
{
	return ioas_map(s->iommufd, s->ioas, &iova, memory, size, READ_WRITE | IOMMU_IOAS_MAP_FIXED_IOVA);
}

static long long ioas_unmap(const struct session *s, u64 iova, u64 size)
{
	struct iommu_ioas_unmap request = {
		.size = sizeof(request),
		.ioas_id = s->ioas,
		.iova = iova,
		.length = size,
	};

	if (ioctl(s->iommufd, IOMMU_IOAS_UNMAP, &request))
		return -1;
	return request.length;
}

static int destroy(int iommufd, u32 id)
{
	struct iommu_destroy request = { .size = sizeof(request), .id = id };

	return ioctl(iommufd, IOMMU_DESTROY, &request);
}

static int attach(const struct session *s, u32 *pt)
{
	struct vfio_device_attach_iommufd_pt request = { .argsz = sizeof(request), .pt_id = *pt };
	int result = ioctl(s->device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &request);

	*pt = request.pt_id;
	return result;
}

static int detach(const struct session *s)
{
	struct vfio_device_detach_iommufd_pt request = { .argsz = sizeof(request) };

	return ioctl(s->device, VFIO_DEVICE_DETACH_IOMMUFD_PT, &request);
}

static void binding(void)
{
	struct function edu = find_edu();
	struct vfio_device_info info = { .argsz = sizeof(info) };
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind), .iommufd = -1 };
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	struct session s = { .container = -1, .group = -1 };
	u32 pt;
	int group;

	s.iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	CHECK(s.iommufd >= 0, "open /dev/iommu");
	s.device = open_cdev(&edu);
	CHECK(s.device >= 0, "open of %s", edu.cdev);
	REFUSED(EINVAL, ioctl(s.device, VFIO_DEVICE_GET_INFO, &info));
	REFUSED(EINVAL, ioctl(s.device, VFIO_DEVICE_BIND_IOMMUFD, &bind));
	bind.iommufd = s.iommufd;
	bind.argsz = 8;
	REFUSED(EINVAL, ioctl(s.device, VFIO_DEVICE_BIND_IOMMUFD, &bind));
	bind.argsz = sizeof(bind);
	group = open_group(&edu);
	CHECK(group >= 0, "open of the group before the device is bound");
	REFUSED(EBUSY, ioctl(s.device, VFIO_DEVICE_BIND_IOMMUFD, &bind));
	close(group);
	WORKS(ioctl(s.device, VFIO_DEVICE_BIND_IOMMUFD, &bind));
	CHECK(bind.out_devid, "no device id");
	REFUSED(EINVAL, ioctl(s.device, VFIO_DEVICE_BIND_IOMMUFD, &bind));
	REFUSED(EBUSY, open_group(&edu));
	REFUSED(EBUSY, destroy(s.iommufd, bind.out_devid));
	WORKS(ioctl(s.device, VFIO_DEVICE_GET_INFO, &info));
	ok("bind");

	alloc.flags = 1;
	REFUSED(EOPNOTSUPP, ioctl(s.iommufd, IOMMU_IOAS_ALLOC, &alloc));
	alloc.flags = 0;
	WORKS(ioctl(s.iommufd, IOMMU_IOAS_ALLOC, &alloc));
	pt = 0x7fffffff;
	CHECK(attach(&s, &pt) < 0, "attach to an id that is not there");
	pt = alloc.out_ioas_id;
	WORKS(attach(&s, &pt));
	REFUSED(EBUSY, destroy(s.iommufd, alloc.out_ioas_id));
	WORKS(detach(&s));
	WORKS(destroy(s.iommufd, alloc.out_ioas_id));
	REFUSED(ENOENT, destroy(s.iommufd, alloc.out_ioas_id));
	close_session(&s);
	ok("attach, detach, destroy");
}

static void transfers(void)
{
	struct session s = open_iommufd(find_edu());
	u8 *memory = anonymous(4 * PAGE), *shared = file_memory(PAGE, NULL);
	u32 pt = s.ioas;
	u64 iova = 0;
	int fd = event();

	WORKS(map_at(&s, IOVA, memory, 4 * PAGE));
	WORKS(map_at(&s, IOVA + 0x10000, shared, PAGE));
	fill(memory, PAGE, 30);
	edu_dma(&s, IOVA, 0, PAGE, TO_EDU);
	edu_dma(&s, IOVA + PAGE, 0, PAGE, FROM_EDU);
	edu_dma(&s, IOVA + 0x10000, 0, PAGE, FROM_EDU);
	CHECK(holds(memory + PAGE, PAGE, 30) && holds(shared, PAGE, 30), "transfers");
	ok("transfers");

	WORKS(set_event(s.device, VFIO_PCI_MSI_IRQ_INDEX, VFIO_IRQ_SET_ACTION_TRIGGER, fd));
	write32(&s, EDU_IRQ_RAISE, 1);
	CHECK(events(fd, 2000) == 1, "MSI");
	write32(&s, EDU_IRQ_ACK, 1);
	ok("MSI");

	WORKS(detach(&s));
	memset(memory + PAGE, 0, PAGE);
	edu_dma(&s, IOVA + PAGE, 0, PAGE, FROM_EDU);
	CHECK(all_bytes(memory + PAGE, PAGE, 0), "memory was written by a detached device");
	WORKS(attach(&s, &pt));
	edu_dma(&s, IOVA + PAGE, 0, PAGE, FROM_EDU);
	CHECK(holds(memory + PAGE, PAGE, 30), "a transfer after the device was attached again");
	ok("a detached device reaches nothing");

	CHECK(ioas_unmap(&s, IOVA, 4 * PAGE) == 4 * PAGE, "unmap");
	memset(memory + PAGE, 0, PAGE);
	edu_dma(&s, IOVA + PAGE, 0, PAGE, FROM_EDU);
	CHECK(all_bytes(memory + PAGE, PAGE, 0), "memory was written after its unmap");
	ok("address no longer mapped");

	WORKS(ioas_map(s.iommufd, s.ioas, &iova, memory, 2 * PAGE, READ_WRITE));
	CHECK(iova && !(iova % PAGE), "IOVA %#lx was chosen", iova);
	CHECK(ioas_unmap(&s, iova, 2 * PAGE) == 2 * PAGE, "unmap of a chosen IOVA");
	ok("IOVA chosen by the kernel");
	close(fd);
	close_session(&s);
}

static void errors(void)
{
	struct session s = open_iommufd(find_edu());
	u8 *memory = anonymous(4 * PAGE);
	struct iommu_ioas_map request = { .size = sizeof(request), .ioas_id = s.ioas, .length = PAGE,
		.user_va = (uintptr_t)memory, .iova = IOVA,
		.flags = READ_WRITE | IOMMU_IOAS_MAP_FIXED_IOVA };

	request.flags |= 1u << 31;
	REFUSED(EOPNOTSUPP, ioctl(s.iommufd, IOMMU_IOAS_MAP, &request));
	request.flags = IOMMU_IOAS_MAP_FIXED_IOVA;
	REFUSED(EINVAL, ioctl(s.iommufd, IOMMU_IOAS_MAP, &request));
	REFUSED(EINVAL, map_at(&s, IOVA, memory, 0));
	REFUSED(EINVAL, map_at(&s, IOVA + 1, memory, PAGE));
	REFUSED(EINVAL, map_at(&s, 0xfee00000, memory, PAGE));
	REFUSED(EOVERFLOW, map_at(&s, ~0ul - PAGE + 1, memory, 2 * PAGE));
	REFUSED(EFAULT, map_at(&s, IOVA, NULL, PAGE));
	REFUSED(ENOENT, ioas_unmap(&s, IOVA, PAGE));
	CHECK(ioas_unmap(&s, 0, ~0ul) == 0, "unmap of everything when there is nothing");
	WORKS(map_at(&s, IOVA, memory, 4 * PAGE));
	REFUSED(EEXIST, map_at(&s, IOVA + PAGE, memory, PAGE));
	REFUSED(ENOENT, ioas_unmap(&s, IOVA, PAGE));
	CHECK(ioas_unmap(&s, 0, ~0ul) == 4 * (long long)PAGE, "unmap of everything");
	request.size = 8;
	REFUSED(EINVAL, ioctl(s.iommufd, IOMMU_IOAS_MAP, &request));
	REFUSED(EFAULT, ioctl(s.iommufd, IOMMU_IOAS_MAP, NULL));
	REFUSED(ENOTTY, ioctl(s.iommufd, _IO(';', 0xfe)));
	close_session(&s);
	ok("errors");
}

static void ranges_and_copies(void)
{
	struct session s = open_iommufd(find_edu());
	struct iommu_iova_range ranges[16];
	struct iommu_ioas_iova_ranges request = { .size = sizeof(request), .ioas_id = s.ioas };
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	struct iommu_ioas_copy copy = { .size = sizeof(copy), .src_ioas_id = s.ioas, .length = PAGE,
		.flags = READ_WRITE | IOMMU_IOAS_MAP_FIXED_IOVA, .src_iova = IOVA + PAGE, .dst_iova = IOVA };
	u8 *memory = anonymous(2 * PAGE);

	REFUSED(EMSGSIZE, ioctl(s.iommufd, IOMMU_IOAS_IOVA_RANGES, &request));
	CHECK(request.num_iovas >= 1 && request.num_iovas <= 16, "%u ranges", request.num_iovas);
	request.allowed_iovas = (uintptr_t)ranges;
	WORKS(ioctl(s.iommufd, IOMMU_IOAS_IOVA_RANGES, &request));
	for (u32 i = 0; i < request.num_iovas; i++)
		CHECK(ranges[i].last < 0xfee00000 || ranges[i].start > 0xfeefffff,
			"range %#llx-%#llx holds the MSI window", ranges[i].start, ranges[i].last);
	ok("IOVA ranges");

	WORKS(map_at(&s, IOVA, memory, 2 * PAGE));
	WORKS(ioctl(s.iommufd, IOMMU_IOAS_ALLOC, &alloc));
	copy.dst_ioas_id = alloc.out_ioas_id;
	WORKS(ioctl(s.iommufd, IOMMU_IOAS_COPY, &copy));
	WORKS(detach(&s));
	WORKS(attach(&s, &alloc.out_ioas_id));
	fill(memory + PAGE, PAGE, 31);
	edu_dma(&s, IOVA, 0, PAGE, TO_EDU);
	memset(memory + PAGE, 0, PAGE);
	edu_dma(&s, IOVA, 0, PAGE, FROM_EDU);
	CHECK(holds(memory + PAGE, PAGE, 31), "transfers through the copy");
	close_session(&s);
	ok("copy into another address space");
}

static void page_tables(void)
{
	struct function edu = find_edu();
	struct session s = { .container = -1, .group = -1 };
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind) };
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	struct iommu_hwpt_alloc hwpt = { .size = sizeof(hwpt) };
	u8 *memory = anonymous(2 * PAGE);
	u32 pt;

	s.iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	s.device = open_cdev(&edu);
	CHECK(s.iommufd >= 0 && s.device >= 0, "open");
	bind.iommufd = s.iommufd;
	WORKS(ioctl(s.device, VFIO_DEVICE_BIND_IOMMUFD, &bind));
	WORKS(ioctl(s.iommufd, IOMMU_IOAS_ALLOC, &alloc));
	s.ioas = alloc.out_ioas_id;
	hwpt.dev_id = bind.out_devid;
	hwpt.pt_id = s.ioas;
	WORKS(ioctl(s.iommufd, IOMMU_HWPT_ALLOC, &hwpt));
	pt = hwpt.out_hwpt_id;
	WORKS(attach(&s, &pt));
	read_layout(&s);
	set_command(&s, 0x6);
	WORKS(map_at(&s, IOVA, memory, 2 * PAGE));
	fill(memory, PAGE, 32);
	edu_dma(&s, IOVA, 0, PAGE, TO_EDU);
	edu_dma(&s, IOVA + PAGE, 0, PAGE, FROM_EDU);
	CHECK(holds(memory + PAGE, PAGE, 32), "transfers through an allocated page table");
	REFUSED(EBUSY, destroy(s.iommufd, hwpt.out_hwpt_id));
	WORKS(detach(&s));
	WORKS(destroy(s.iommufd, hwpt.out_hwpt_id));
	close_session(&s);
	ok("an allocated page table");
}

// A page of edu's own registers, held by a descriptor and mapped for edu: a transfer writes a register.
static void exported_registers(void)
{
	struct session s = open_iommufd(find_edu());
	struct {
		struct vfio_device_feature head;
		u32 region, open_flags, flags, count;
		u64 offset, length;
	} feature = { .head = { .argsz = sizeof(feature), .flags = VFIO_DEVICE_FEATURE_GET | 11 },
		.count = 1, .length = PAGE };
	struct iommu_ioas_map_file map = { .size = sizeof(map), .ioas_id = s.ioas, .length = PAGE,
		.flags = READ_WRITE | IOMMU_IOAS_MAP_FIXED_IOVA, .iova = IOVA + 0x10000 };
	u32 *memory = anonymous(PAGE);
	int fd;

	feature.region = 7;
	REFUSED(ENODEV, ioctl(s.device, VFIO_DEVICE_FEATURE, &feature));
	feature.region = 0;
	map.fd = fd = ioctl(s.device, VFIO_DEVICE_FEATURE, &feature);
	CHECK(fd >= 0, "VFIO_DEVICE_FEATURE_DMA_BUF");
	WORKS(ioctl(s.iommufd, IOMMU_IOAS_MAP_FILE, &map));
	WORKS(map_at(&s, IOVA, memory, PAGE));
	*memory = 0x13572468;
	edu_dma(&s, IOVA, 0, 4, TO_EDU);
	edu_dma(&s, map.iova + EDU_LIVENESS, 0, 4, FROM_EDU);
	CHECK(read32(&s, EDU_LIVENESS) == ~0x13572468u, "the register is %#x", read32(&s, EDU_LIVENESS));
	ok("a transfer to exported registers");
	WORKS(ioctl(s.device, VFIO_DEVICE_RESET));
	set_command(&s, 0x6);
	edu_dma(&s, map.iova + EDU_LIVENESS, 0, 4, FROM_EDU);
	CHECK(read32(&s, EDU_LIVENESS) == 0, "the register is %#x", read32(&s, EDU_LIVENESS));
	CHECK(ioas_unmap(&s, map.iova, PAGE) == PAGE, "the mapping is gone");
	WORKS(ioctl(s.iommufd, IOMMU_IOAS_MAP_FILE, &map));
	close(fd);
	close_session(&s);
	ok("a reset takes them back");
}

static void orders_of_closing(void)
{
	for (int i = 0; i < 30; i++) {
		struct session s = open_iommufd(find_edu());

		WORKS(map_at(&s, IOVA, anonymous(PAGE), PAGE));
		close(i % 2 ? s.device : s.iommufd);
		close(i % 2 ? s.iommufd : s.device);
	}
	struct session s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);
	close_session(&s);
	ok("both orders of closing, then by group");
}

void iommufd(void)
{
	binding();
	transfers();
	errors();
	ranges_and_copies();
	page_tables();
	exported_registers();
	orders_of_closing();
}
