// Container, group and device: what each object answers, in the order a program meets them.
#include "client.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>

static void containers_and_groups(void)
{
	struct function edu = find_edu(), nvme = find_nvme();
	struct vfio_group_status status = { .argsz = sizeof(status) };
	int null = open("/dev/null", O_RDWR | O_CLOEXEC), none = -1;
	int container, group, device;

	CHECK(edu.group != nvme.group, "edu and nvme share group %d", edu.group);
	ok("sysfs shows edu in group %d and nvme in group %d", edu.group, nvme.group);

	container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	CHECK(container >= 0, "open /dev/vfio/vfio");
	CHECK(ioctl(container, VFIO_GET_API_VERSION) == VFIO_API_VERSION, "API version");
	CHECK(ioctl(container, VFIO_CHECK_EXTENSION, VFIO_TYPE1_IOMMU) == 1, "type1");
	CHECK(ioctl(container, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU) == 1, "type1 v2");
	CHECK(ioctl(container, VFIO_CHECK_EXTENSION, VFIO_UNMAP_ALL) == 1, "UNMAP_ALL");
	CHECK(ioctl(container, VFIO_CHECK_EXTENSION, VFIO_SPAPR_TCE_IOMMU) == 0, "sPAPR");
	CHECK(ioctl(container, VFIO_CHECK_EXTENSION, 9999) == 0, "an unknown extension");
	REFUSED(EINVAL, ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	REFUSED(EINVAL, map(container, IOVA, anonymous(PAGE), PAGE, RW));
	ok("container without a group");

	group = open_group(&edu);
	CHECK(group >= 0, "open of group %d", edu.group);
	REFUSED(EBUSY, open_group(&edu));
	WORKS(ioctl(group, VFIO_GROUP_GET_STATUS, &status));
	CHECK(status.flags == VFIO_GROUP_FLAGS_VIABLE, "group flags %#x", status.flags);
	REFUSED(EINVAL, ioctl(group, VFIO_GROUP_UNSET_CONTAINER));
	REFUSED(EINVAL, ioctl(group, VFIO_GROUP_GET_DEVICE_FD, edu.address));
	REFUSED(EBADF, ioctl(group, VFIO_GROUP_SET_CONTAINER, &none));
	REFUSED(EBADFD, ioctl(group, VFIO_GROUP_SET_CONTAINER, &null));
	WORKS(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
	REFUSED(EINVAL, ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
	WORKS(ioctl(group, VFIO_GROUP_GET_STATUS, &status));
	CHECK(status.flags & VFIO_GROUP_FLAGS_CONTAINER_SET, "group flags %#x", status.flags);
	REFUSED(EINVAL, ioctl(group, VFIO_GROUP_GET_DEVICE_FD, edu.address));
	WORKS(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	REFUSED(EINVAL, ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	REFUSED(ENOTTY, ioctl(container, _IO(VFIO_TYPE, VFIO_BASE + 90)));
	ok("group joins a container");

	REFUSED(ENODEV, ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "ffff:ff:1f.7"));
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, edu.address);
	CHECK(device >= 0, "GET_DEVICE_FD");
	CHECK(fcntl(device, F_GETFD) & FD_CLOEXEC, "the device is not closed on exec");
	REFUSED(EBUSY, ioctl(group, VFIO_GROUP_UNSET_CONTAINER));
	close(device);
	WORKS(ioctl(group, VFIO_GROUP_UNSET_CONTAINER));
	REFUSED(EINVAL, ioctl(group, VFIO_GROUP_UNSET_CONTAINER));
	REFUSED(EINVAL, map(container, IOVA, anonymous(PAGE), PAGE, RW));
	close(group);
	close(container);
	close(null);
	ok("group leaves its container");
}

static void regions(const struct session *s)
{
	struct vfio_device_info device = { .argsz = sizeof(device) };
	struct vfio_region_info info;

	WORKS(ioctl(s->device, VFIO_DEVICE_GET_INFO, &device));
	CHECK(device.flags & VFIO_DEVICE_FLAGS_PCI, "device flags %#x", device.flags);
	CHECK(device.num_regions == VFIO_PCI_NUM_REGIONS, "%u regions", device.num_regions);
	CHECK(device.num_irqs == VFIO_PCI_NUM_IRQS, "%u interrupts", device.num_irqs);
	for (u32 index = 0; index < 12; index++) {
		info = (struct vfio_region_info){ .argsz = sizeof(info), .index = index };
		if (index >= VFIO_PCI_VGA_REGION_INDEX) {
			REFUSED(EINVAL, ioctl(s->device, VFIO_DEVICE_GET_REGION_INFO, &info));
			continue;
		}
		WORKS(ioctl(s->device, VFIO_DEVICE_GET_REGION_INFO, &info));
		if (index == VFIO_PCI_BAR0_REGION_INDEX) {
			CHECK(info.size == 1 << 20, "BAR 0 has %#llx bytes", info.size);
		} else if (index == VFIO_PCI_CONFIG_REGION_INDEX) {
			CHECK(info.size == 256 || info.size == 4096, "config space has %#llx bytes", info.size);
			CHECK(!(info.flags & VFIO_REGION_INFO_FLAG_MMAP), "config space is mappable");
		} else {
			CHECK(!info.size, "region %u has %#llx bytes", index, info.size);
			continue;
		}
		CHECK((info.flags & 3) == 3, "region %u has flags %#x", index, info.flags);
	}
	ok("device and region information");
}

static void configuration(const struct session *s)
{
	u8 header[64], low, high;
	u16 command;
	struct iovec parts[2] = { { &low, 1 }, { &high, 1 } };

	CHECK(pread(s->device, header, 64, s->config) == 64, "read of the header");
	CHECK(header[0] == 0x34 && header[1] == 0x12, "vendor");
	CHECK(header[2] == 0xe8 && header[3] == 0x11, "device");
	CHECK(preadv(s->device, parts, 2, s->config + 2) == 2, "preadv");
	CHECK(low == 0xe8 && high == 0x11, "preadv reads %#x %#x", low, high);
	for (u16 bits = 0; bits < 8; bits += 2) {
		set_command(s, bits);
		CHECK(pread(s->device, &command, 2, s->config + 4) == 2, "read of the command register");
		CHECK((command & 6) == bits, "command is %#x instead of %#x", command, bits);
	}
	ok("configuration space");
}

static void registers(const struct session *s)
{
	u32 value = 5;
	struct iovec part = { &value, 4 };
	u64 wide;

	CHECK(read32(s, EDU_ID) == 0x010000ed, "edu's id is %#x", read32(s, EDU_ID));
	check_liveness(s);
	CHECK(pwritev(s->device, &part, 1, s->bar0 + EDU_FACTORIAL) == 4, "pwritev");
	while (read32(s, EDU_STATUS) & 1)
		;
	CHECK(read32(s, EDU_FACTORIAL) == 120, "5! is %u", read32(s, EDU_FACTORIAL));
	REFUSED(EINVAL, pread(s->device, &value, 4, s->bar0 + s->bar0_size));
	CHECK(pread(s->device, &wide, 8, s->bar0 + s->bar0_size - 4) == 4, "a read across the end");
	set_command(s, 0x4);
	REFUSED(EIO, pread(s->device, &value, 4, s->bar0));
	REFUSED(EIO, pwrite(s->device, &value, 4, s->bar0));
	set_command(s, 0x6);
	check_liveness(s);
	ok("registers");
}

static void mappings_of_regions(const struct session *s)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = 0 };
	struct vfio_region_info empty = { .argsz = sizeof(empty), .index = 1 };
	struct {
		int flags;
		u64 offset;
		const char *what;
	} bad[] = {
		{ MAP_SHARED, s->config, "config space" },
		{ MAP_PRIVATE, s->bar0, "BAR 0, private" },
		{ MAP_SHARED, 0, "BAR 1" },
	};

	WORKS(ioctl(s->device, VFIO_DEVICE_GET_REGION_INFO, &empty));
	bad[2].offset = empty.offset;
	for (size_t i = 0; i < COUNT(bad); i++) {
		errno = 0;
		CHECK(mmap(NULL, PAGE, PROT_READ, bad[i].flags, s->device, bad[i].offset) == MAP_FAILED
			&& errno == EINVAL, "mmap of %s", bad[i].what);
	}
	WORKS(ioctl(s->device, VFIO_DEVICE_GET_REGION_INFO, &info));
	if (info.flags & VFIO_REGION_INFO_FLAG_MMAP) {
		volatile u32 *bar = mmap(NULL, info.size, PROT_READ | PROT_WRITE, MAP_SHARED, s->device, s->bar0);

		CHECK(bar != MAP_FAILED, "mmap of BAR 0, which is mappable");
		CHECK(bar[0] == 0x010000ed, "BAR 0 in memory reads %#x", bar[0]);
		munmap((void *)bar, info.size);
	} else {
		CHECK(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, s->device, s->bar0) == MAP_FAILED
			&& errno == EINVAL, "mmap of BAR 0, which is not mappable");
	}
	ok("mappings of regions");
}

static void resets(const struct session *s)
{
	struct {
		struct vfio_pci_hot_reset_info info;
		struct vfio_pci_dependent_device devices[32];
	} hot = { .info.argsz = sizeof(hot.info) };
	struct vfio_device_feature feature = {
		.argsz = sizeof(feature),
		.flags = VFIO_DEVICE_FEATURE_PROBE | VFIO_DEVICE_FEATURE_GET | 0xfff,
	};
	struct vfio_device_info info = { .argsz = sizeof(info) };

	WORKS(ioctl(s->device, VFIO_DEVICE_GET_INFO, &info));
	if (info.flags & VFIO_DEVICE_FLAGS_RESET) {
		write32(s, EDU_LIVENESS, 0x3333);
		WORKS(ioctl(s->device, VFIO_DEVICE_RESET));
		set_command(s, 0x6);
		CHECK(read32(s, EDU_ID) == 0x010000ed, "edu after a reset");
		CHECK(read32(s, EDU_LIVENESS) != ~0x3333u, "a register survives a reset");
	} else {
		REFUSED(EINVAL, ioctl(s->device, VFIO_DEVICE_RESET));
	}
	if (ioctl(s->device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &hot)) {
		CHECK(errno == ENOSPC || errno == ENODEV, "hot reset information");
		if (errno == ENOSPC) {
			CHECK(hot.info.count >= 1, "%u devices share the reset", hot.info.count);
			hot.info.argsz = sizeof(hot);
			WORKS(ioctl(s->device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &hot));
			CHECK((int)hot.devices[0].group_id == s->function.group, "group %u", hot.devices[0].group_id);
		}
	}
	REFUSED(ENOTTY, ioctl(s->device, VFIO_DEVICE_FEATURE, &feature));
	ok("resets and features");
}

// Walks the chain of capabilities; returns where the wanted one is.
static void *capability(void *info, u32 first, u16 id)
{
	for (u32 at = first; at;) {
		struct vfio_info_cap_header *header = (void *)((char *)info + at);

		if (header->id == id)
			return header;
		at = header->next;
	}
	return NULL;
}

static void iommu_information(const struct session *s)
{
	union {
		struct vfio_iommu_type1_info info;
		char space[4096];
	} buffer = { .info.argsz = sizeof(buffer.info) };
	struct vfio_iommu_type1_info_cap_iova_range *ranges;
	struct vfio_iommu_type1_info_dma_avail *available;

	WORKS(ioctl(s->container, VFIO_IOMMU_GET_INFO, &buffer));
	CHECK(buffer.info.flags & VFIO_IOMMU_INFO_PGSIZES, "flags %#x", buffer.info.flags);
	CHECK(buffer.info.iova_pgsizes & PAGE, "page sizes %#llx", buffer.info.iova_pgsizes);
	CHECK(buffer.info.flags & VFIO_IOMMU_INFO_CAPS, "flags %#x", buffer.info.flags);
	CHECK(buffer.info.argsz > sizeof(buffer.info), "argsz %u does not tell how much is needed",
		buffer.info.argsz);
	CHECK(!buffer.info.cap_offset, "capabilities in a buffer that is too small");
	buffer.info.argsz = sizeof(buffer);
	WORKS(ioctl(s->container, VFIO_IOMMU_GET_INFO, &buffer));
	ranges = capability(&buffer, buffer.info.cap_offset, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE);
	CHECK(ranges && ranges->nr_iovas, "no IOVA ranges");
	for (u32 i = 0; i < ranges->nr_iovas; i++)
		CHECK(ranges->iova_ranges[i].end < 0xfee00000 || ranges->iova_ranges[i].start > 0xfeefffff,
			"range %#llx-%#llx holds the MSI window", ranges->iova_ranges[i].start,
			ranges->iova_ranges[i].end);
	available = capability(&buffer, buffer.info.cap_offset, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL);
	CHECK(available && available->avail == 65535, "mappings available");
	CHECK(capability(&buffer, buffer.info.cap_offset, VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION),
		"no migration capability");
	ok("IOMMU information");
}

static void type1_v1(void)
{
	struct session s = open_legacy(find_edu(), VFIO_TYPE1_IOMMU);

	WORKS(map(s.container, IOVA, anonymous(4 * PAGE), 4 * PAGE, RW));
	CHECK(unmap(s.container, IOVA + PAGE, PAGE, 0) == 0, "a piece from the middle stays");
	CHECK(unmap(s.container, IOVA, PAGE, 0) == 4 * PAGE, "the first page takes the whole along");
	close_session(&s);
	ok("type1 v1");
}

void legacy(void)
{
	struct session s;

	containers_and_groups();
	s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);
	regions(&s);
	configuration(&s);
	registers(&s);
	mappings_of_regions(&s);
	resets(&s);
	iommu_information(&s);
	close_session(&s);
	type1_v1();
}
