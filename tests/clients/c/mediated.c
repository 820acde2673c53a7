// A mediated device, which looks at the program's mappings by itself: in a container, in an iommufd that
// plays one, and by its own node.
#include "client.h"

#include <dirent.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <sys/mman.h>

#define DEVICES "/sys/bus/mdev/devices"

static struct function find_mediated(void)
{
	struct function function = { 0 };
	char path[PATH_MAX], target[PATH_MAX] = "";
	struct dirent *entry;
	DIR *directory = opendir(DEVICES);

	CHECK(directory, "opendir " DEVICES);
	while ((entry = readdir(directory)))
		if (strlen(entry->d_name) == 36)
			strcpy(function.address, entry->d_name);
	closedir(directory);
	CHECK(function.address[0], DEVICES " is empty");
	snprintf(path, sizeof(path), DEVICES "/%s/iommu_group", function.address);
	CHECK(readlink(path, target, sizeof(target) - 1) > 0, "readlink %s", path);
	function.group = atoi(basename(target));
	snprintf(path, sizeof(path), DEVICES "/%s/vfio-dev", function.address);
	directory = opendir(path);
	CHECK(directory, "opendir %s", path);
	while ((entry = readdir(directory)))
		if (!strncmp(entry->d_name, "vfio", 4) && strlen(entry->d_name) < sizeof(function.cdev))
			strcpy(function.cdev, entry->d_name);
	closedir(directory);
	snprintf(path, sizeof(path), DEVICES "/%s/subsystem", function.address);
	memset(target, 0, sizeof(target));
	CHECK(readlink(path, target, sizeof(target) - 1) > 0, "readlink %s", path);
	CHECK(!strcmp(basename(target), "mdev"), "it is on the bus %s", target);
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s", function.address);
	CHECK(access(path, F_OK), "%s exists", path);
	return function;
}

static void round_trip(const struct session *s, u8 *memory, u32 seed)
{
	fill(memory, PAGE, seed);
	edu_dma(s, IOVA, 0, PAGE, TO_EDU);
	edu_dma(s, IOVA + PAGE, 0, PAGE, FROM_EDU);
	CHECK(holds(memory + PAGE, PAGE, seed), "what came back is not what was sent");
}

static u64 dirty(int container, u64 pages)
{
	u64 bits = ~0ul;
	struct {
		struct vfio_iommu_type1_dirty_bitmap head;
		struct vfio_iommu_type1_dirty_bitmap_get get;
	} request = {
		.head = { .argsz = sizeof(request), .flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP },
		.get = { .iova = IOVA, .size = pages * PAGE,
			.bitmap = { .pgsize = PAGE, .size = sizeof(bits), .data = (void *)&bits } },
	};

	WORKS(ioctl(container, VFIO_IOMMU_DIRTY_PAGES, &request));
	return bits;
}

static void in_container(struct function function, int iommu_type)
{
	struct session s = open_legacy(function, iommu_type);
	struct vfio_device_feature feature = { .argsz = sizeof(feature),
		.flags = VFIO_DEVICE_FEATURE_PROBE | VFIO_DEVICE_FEATURE_LOW_POWER_EXIT };
	u8 *memory = anonymous(4 * PAGE);
	int fd = event();

	REFUSED(ENOTTY, ioctl(s.device, VFIO_DEVICE_FEATURE, &feature));
	CHECK(ioctl(s.container, VFIO_CHECK_EXTENSION, VFIO_UPDATE_VADDR) == 0, "VFIO_UPDATE_VADDR");
	WORKS(map(s.container, IOVA, memory, 4 * PAGE, RW));
	WORKS(map(s.container, 0xfee00000, memory, PAGE, RW));
	// Nothing is looked at before the device wants it.
	WORKS(map(s.container, IOVA + 0x10000, (void *)PAGE, PAGE, RW));
	round_trip(&s, memory, 40);
	REFUSED(EBUSY, unmap(s.container, IOVA, 4 * PAGE, VFIO_DMA_UNMAP_FLAG_VADDR));
	ok("transfers in a container of type %d", iommu_type);

	WORKS(set_event(s.device, VFIO_PCI_MSI_IRQ_INDEX, VFIO_IRQ_SET_ACTION_TRIGGER, fd));
	write32(&s, EDU_IRQ_RAISE, 1);
	CHECK(events(fd, 2000) == 1, "MSI");
	write32(&s, EDU_IRQ_ACK, 1);
	ok("MSI");

	if (iommu_type == VFIO_TYPE1v2_IOMMU) {
		struct vfio_iommu_type1_dirty_bitmap start = { .argsz = sizeof(start),
			.flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_START };
		u64 bits;

		WORKS(ioctl(s.container, VFIO_IOMMU_DIRTY_PAGES, &start));
		edu_dma(&s, IOVA + PAGE + 8, 0, PAGE, FROM_EDU);
		edu_dma(&s, IOVA, 0, PAGE, TO_EDU);
		CHECK((bits = dirty(s.container, 4)) == 6, "dirty pages %#lx", bits);
		CHECK((bits = dirty(s.container, 4)) == 0, "dirty pages %#lx after they were read", bits);
		ok("what it wrote is dirty, and nothing else");
	}
	CHECK(unmap(s.container, IOVA, 4 * PAGE, 0) == 4 * PAGE, "unmap");
	memset(memory + PAGE, 0, PAGE);
	edu_dma(&s, IOVA + PAGE, 0, PAGE, FROM_EDU);
	CHECK(all_bytes(memory + PAGE, PAGE, 0), "memory was written after its unmap");
	ok("address no longer mapped");
	close(fd);
	close_session(&s);
}

static void in_iommufd_as_container(struct function function)
{
	struct session s = { .function = function, .iommufd = -1 };
	u8 *memory = anonymous(2 * PAGE);

	s.container = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	s.group = open_group(&function);
	CHECK(s.container >= 0 && s.group >= 0, "open");
	WORKS(ioctl(s.group, VFIO_GROUP_SET_CONTAINER, &s.container));
	WORKS(ioctl(s.container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	s.device = ioctl(s.group, VFIO_GROUP_GET_DEVICE_FD, function.address);
	CHECK(s.device >= 0, "GET_DEVICE_FD of %s", function.address);
	read_layout(&s);
	set_command(&s, 0x6);
	WORKS(map(s.container, IOVA, memory, 2 * PAGE, RW));
	round_trip(&s, memory, 41);
	close_session(&s);
	ok("transfers in an iommufd as container");
}

static void by_its_own_node(struct function function)
{
	struct session s = open_iommufd(function);
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach) };
	u8 *memory = anonymous(2 * PAGE);
	struct iommu_ioas_map request = { .size = sizeof(request), .ioas_id = s.ioas, .length = 2 * PAGE,
		.user_va = (uintptr_t)memory, .iova = IOVA,
		.flags = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_FIXED_IOVA };

	WORKS(ioctl(s.iommufd, IOMMU_IOAS_MAP, &request));
	round_trip(&s, memory, 42);
	WORKS(ioctl(s.iommufd, IOMMU_IOAS_ALLOC, &alloc));
	attach.pt_id = alloc.out_ioas_id;
	WORKS(ioctl(s.device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach));
	memset(memory + PAGE, 0, PAGE);
	edu_dma(&s, IOVA + PAGE, 0, PAGE, FROM_EDU);
	CHECK(all_bytes(memory + PAGE, PAGE, 0), "memory of an address space that it does not use any more");
	attach.pt_id = s.ioas;
	WORKS(ioctl(s.device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach));
	round_trip(&s, memory, 43);
	close_session(&s);
	ok("transfers by its own node");
}

void mediated(void)
{
	struct function function = find_mediated();

	in_container(function, VFIO_TYPE1v2_IOMMU);
	in_container(function, VFIO_TYPE1_IOMMU);
	in_iommufd_as_container(function);
	by_its_own_node(function);
}
