// Finds functions in sysfs and opens them, by group and by cdev; registers and interrupts.
#include "client.h"

#include <dirent.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <time.h>

#define DEVICES "/sys/bus/pci/devices"

enum mode mode = TYPE1V2;
// The address space of the session that was opened last in mode IOMMUFD.
static u32 ioas;

static u32 read_number(const char *address, const char *name)
{
	char path[PATH_MAX], text[32] = "";
	int file;

	snprintf(path, sizeof(path), DEVICES "/%s/%s", address, name);
	file = open(path, O_RDONLY | O_CLOEXEC);
	CHECK(file >= 0, "open %s", path);
	CHECK(read(file, text, sizeof(text) - 1) > 0, "read %s", path);
	close(file);
	return strtoul(text, NULL, 16);
}

static void link_name(const char *address, const char *name, char *out, size_t size)
{
	char path[PATH_MAX], target[PATH_MAX] = "";

	snprintf(path, sizeof(path), DEVICES "/%s/%s", address, name);
	CHECK(readlink(path, target, sizeof(target) - 1) > 0, "readlink %s", path);
	snprintf(out, size, "%s", basename(target));
}

static void describe(const char *address, struct function *function)
{
	char path[PATH_MAX], name[64];
	struct dirent *entry;
	DIR *directory;

	link_name(address, "driver", name, sizeof(name));
	CHECK(!strcmp(name, "vfio-pci"), "%s is bound to %s", address, name);
	link_name(address, "iommu_group", name, sizeof(name));
	function->group = atoi(name);
	snprintf(path, sizeof(path), DEVICES "/%s/vfio-dev", address);
	directory = opendir(path);
	CHECK(directory, "opendir %s", path);
	while ((entry = readdir(directory)))
		if (!strncmp(entry->d_name, "vfio", 4) && strlen(entry->d_name) < sizeof(function->cdev))
			strcpy(function->cdev, entry->d_name);
	closedir(directory);
	CHECK(function->cdev[0], "%s is empty", path);
}

static struct function find(bool (*wanted)(const struct function *), const char *what)
{
	DIR *directory = opendir(DEVICES);
	struct dirent *entry;

	CHECK(directory, "opendir " DEVICES);
	while ((entry = readdir(directory))) {
		struct function function = { 0 };

		if (entry->d_name[0] == '.' || strlen(entry->d_name) >= sizeof(function.address))
			continue;
		strcpy(function.address, entry->d_name);
		function.vendor = read_number(entry->d_name, "vendor");
		function.device = read_number(entry->d_name, "device");
		function.class = read_number(entry->d_name, "class");
		if (wanted(&function)) {
			describe(entry->d_name, &function);
			closedir(directory);
			return function;
		}
	}
	fail(__FILE__, __LINE__, "no %s in " DEVICES, what);
}

static bool is_edu(const struct function *function)
{
	return function->vendor == 0x1234 && function->device == 0x11e8;
}

static bool is_nvme(const struct function *function)
{
	return function->class == 0x010802;
}

static bool is_nic(const struct function *function)
{
	return function->vendor == 0x1af4 && function->device == 0x1041;
}

struct function find_edu(void)
{
	return find(is_edu, "edu");
}

struct function find_nvme(void)
{
	return find(is_nvme, "NVMe controller");
}

struct function function_at(const char *address)
{
	struct function function = { 0 };

	CHECK(strlen(address) < sizeof(function.address), "the address %s", address);
	strcpy(function.address, address);
	function.vendor = read_number(address, "vendor");
	function.device = read_number(address, "device");
	function.class = read_number(address, "class");
	describe(address, &function);
	return function;
}

static unsigned find_all(bool (*wanted)(const struct function *), struct function *functions, unsigned most)
{
	struct dirent **entries;
	unsigned found = 0;
	int count = scandir(DEVICES, &entries, NULL, alphasort);

	CHECK(count >= 0, "scandir " DEVICES);
	for (int i = 0; i < count; i++) {
		const char *name = entries[i]->d_name;
		struct function function = { 0 };

		if (name[0] != '.' && found < most) {
			function.vendor = read_number(name, "vendor");
			function.device = read_number(name, "device");
			if (wanted(&function))
				functions[found++] = function_at(name);
		}
		free(entries[i]);
	}
	free(entries);
	return found;
}

unsigned find_nics(struct function *functions, unsigned most)
{
	return find_all(is_nic, functions, most);
}

unsigned find_edus(struct function *functions, unsigned most)
{
	return find_all(is_edu, functions, most);
}

int open_group(const struct function *function)
{
	char path[64];

	snprintf(path, sizeof(path), "/dev/vfio/%d", function->group);
	return open(path, O_RDWR | O_CLOEXEC);
}

int open_cdev(const struct function *function)
{
	char path[64];

	snprintf(path, sizeof(path), "/dev/vfio/devices/%s", function->cdev);
	return open(path, O_RDWR | O_CLOEXEC);
}

void read_layout(struct session *session)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = VFIO_PCI_BAR0_REGION_INDEX };

	WORKS(ioctl(session->device, VFIO_DEVICE_GET_REGION_INFO, &info));
	session->bar0 = info.offset;
	session->bar0_size = info.size;
	info = (struct vfio_region_info){ .argsz = sizeof(info), .index = VFIO_PCI_CONFIG_REGION_INDEX };
	WORKS(ioctl(session->device, VFIO_DEVICE_GET_REGION_INFO, &info));
	session->config = info.offset;
}

void set_command(const struct session *session, u16 bits)
{
	u16 command;

	CHECK(pread(session->device, &command, 2, session->config + 4) == 2, "read of the command register");
	command = (command & ~0x7) | bits;
	CHECK(pwrite(session->device, &command, 2, session->config + 4) == 2, "write of the command register");
}

// By the device's own node, with the iommufd as what map and unmap go to.
static struct session open_as_container(struct function function, int iommu_type)
{
	struct session s = open_iommufd(function);
	struct iommu_vfio_ioas request = { .size = sizeof(request), .ioas_id = s.ioas,
		.op = IOMMU_VFIO_IOAS_SET };

	s.container = s.iommufd;
	s.iommufd = -1;
	ioas = s.ioas;
	if (mode == COMPAT_CDEV) {
		REFUSED(ENODEV, ioctl(s.container, VFIO_SET_IOMMU, iommu_type));
		WORKS(ioctl(s.container, IOMMU_VFIO_IOAS, &request));
		CHECK(!ioctl(s.container, VFIO_GET_API_VERSION), "the version of VFIO");
		CHECK(ioctl(s.container, VFIO_CHECK_EXTENSION, iommu_type) == 1, "the type of IOMMU");
		WORKS(ioctl(s.container, VFIO_SET_IOMMU, iommu_type));
	}
	return s;
}

struct session open_legacy(struct function function, int iommu_type)
{
	const char *container = mode == COMPAT_GROUP ? "/dev/iommu" : "/dev/vfio/vfio";
	struct session s = { .function = function, .iommufd = -1 };

	if (mode == COMPAT_CDEV || mode == IOMMUFD)
		return open_as_container(function, iommu_type);
	if (mode == TYPE1)
		iommu_type = VFIO_TYPE1_IOMMU;
	s.container = open(container, O_RDWR | O_CLOEXEC);
	CHECK(s.container >= 0, "open %s", container);
	s.group = open_group(&function);
	CHECK(s.group >= 0, "open of group %d", function.group);
	WORKS(ioctl(s.group, VFIO_GROUP_SET_CONTAINER, &s.container));
	WORKS(ioctl(s.container, VFIO_SET_IOMMU, iommu_type));
	s.device = ioctl(s.group, VFIO_GROUP_GET_DEVICE_FD, function.address);
	CHECK(s.device >= 0, "GET_DEVICE_FD of %s", function.address);
	read_layout(&s);
	set_command(&s, 0x6);
	return s;
}

struct session open_iommufd(struct function function)
{
	struct session s = { .function = function, .container = -1, .group = -1 };
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind) };
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach) };
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };

	s.iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	CHECK(s.iommufd >= 0, "open /dev/iommu");
	s.device = open_cdev(&function);
	CHECK(s.device >= 0, "open of %s", function.cdev);
	bind.iommufd = s.iommufd;
	WORKS(ioctl(s.device, VFIO_DEVICE_BIND_IOMMUFD, &bind));
	WORKS(ioctl(s.iommufd, IOMMU_IOAS_ALLOC, &alloc));
	s.ioas = alloc.out_ioas_id;
	attach.pt_id = s.ioas;
	WORKS(ioctl(s.device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach));
	read_layout(&s);
	set_command(&s, 0x6);
	return s;
}

void close_session(struct session *session)
{
	close(session->device);
	if (session->group >= 0)
		close(session->group);
	if (session->container >= 0)
		close(session->container);
	if (session->iommufd >= 0)
		close(session->iommufd);
}

u32 read32(const struct session *session, u64 offset)
{
	u32 value;

	CHECK(pread(session->device, &value, 4, session->bar0 + offset) == 4, "read at %#lx", offset);
	return value;
}

void write32(const struct session *session, u64 offset, u32 value)
{
	CHECK(pwrite(session->device, &value, 4, session->bar0 + offset) == 4, "write at %#lx", offset);
}

void write64(const struct session *session, u64 offset, u64 value)
{
	CHECK(pwrite(session->device, &value, 8, session->bar0 + offset) == 8, "write at %#lx", offset);
}

int map(int container, u64 iova, void *memory, u64 size, u32 flags)
{
	struct vfio_iommu_type1_dma_map request = {
		.argsz = sizeof(request),
		.flags = flags,
		.vaddr = (uintptr_t)memory,
		.iova = iova,
		.size = size,
	};
	struct iommu_ioas_map native = {
		.size = sizeof(native),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA |
			(flags & VFIO_DMA_MAP_FLAG_READ ? IOMMU_IOAS_MAP_READABLE : 0) |
			(flags & VFIO_DMA_MAP_FLAG_WRITE ? IOMMU_IOAS_MAP_WRITEABLE : 0),
		.ioas_id = ioas,
		.user_va = (uintptr_t)memory,
		.length = size,
		.iova = iova,
	};

	if (mode == IOMMUFD)
		return ioctl(container, IOMMU_IOAS_MAP, &native);
	return ioctl(container, VFIO_IOMMU_MAP_DMA, &request);
}

long long unmap(int container, u64 iova, u64 size, u32 flags)
{
	struct vfio_iommu_type1_dma_unmap request = {
		.argsz = sizeof(request),
		.flags = flags,
		.iova = iova,
		.size = size,
	};
	struct iommu_ioas_unmap native = {
		.size = sizeof(native),
		.ioas_id = ioas,
		.iova = iova,
		.length = flags & VFIO_DMA_UNMAP_FLAG_ALL ? UINT64_MAX : size,
	};

	if (mode == IOMMUFD)
		return ioctl(container, IOMMU_IOAS_UNMAP, &native) ? -1 : (long long)native.length;
	if (ioctl(container, VFIO_IOMMU_UNMAP_DMA, &request))
		return -1;
	return request.size;
}

int set_event(int device, u32 index, u32 action, int descriptor)
{
	struct {
		struct vfio_irq_set set;
		int descriptor;
	} request = {
		.set = {
			.argsz = sizeof(request.set) + sizeof(int),
			.flags = VFIO_IRQ_SET_DATA_EVENTFD | action,
			.index = index,
			.count = 1,
		},
		.descriptor = descriptor,
	};

	return ioctl(device, VFIO_DEVICE_SET_IRQS, &request);
}

int set_none(int device, u32 index, u32 action, u32 count)
{
	struct vfio_irq_set request = {
		.argsz = sizeof(request),
		.flags = VFIO_IRQ_SET_DATA_NONE | action,
		.index = index,
		.count = count,
	};

	return ioctl(device, VFIO_DEVICE_SET_IRQS, &request);
}

void check_liveness(const struct session *session)
{
	write32(session, EDU_LIVENESS, 0x12345678);
	CHECK(read32(session, EDU_LIVENESS) == ~0x12345678u, "edu's liveness register does not invert");
}

void edu_dma(const struct session *session, u64 iova, u32 at, u32 count, u32 command)
{
	struct timespec rest = { .tv_nsec = 1000000 };
	bool from = command & FROM_EDU;

	write64(session, EDU_DMA_SOURCE, from ? EDU_BUFFER + at : iova);
	write64(session, EDU_DMA_DESTINATION, from ? iova : EDU_BUFFER + at);
	write64(session, EDU_DMA_COUNT, count);
	write64(session, EDU_DMA_COMMAND, command | 1);
	for (int i = 0; read32(session, EDU_DMA_COMMAND) & 1; i++) {
		CHECK(i < 5000, "edu's transfer does not end");
		if (i > 10)
			nanosleep(&rest, NULL);
	}
}

void in_mode(const char *name)
{
	static const char *const names[] = {
		[TYPE1] = "type1", [TYPE1V2] = "type1v2", [COMPAT_GROUP] = "compat-group",
		[COMPAT_CDEV] = "compat-cdev", [IOMMUFD] = "iommufd",
	};
	size_t i = 0;

	while (i < COUNT(names) && strcmp(name, names[i]))
		i++;
	CHECK(i < COUNT(names), "there is no mode %s", name);
	mode = i;
	interrupts();
	dma();
	nvme();
}
