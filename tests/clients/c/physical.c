// A device without IOMMU: who may use it, and what can be done with it.
#include "client.h"

#include <fcntl.h>

void physical(void)
{
	struct function edu = find_edu();
	struct session s = { .function = edu, .iommufd = -1 };
	struct vfio_iommu_type1_info info = { .argsz = sizeof(info) };
	char path[64], mode = 0;
	int fd;

	fd = open("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0 && read(fd, &mode, 1) == 1 && mode == 'Y', "the mode is %c", mode);
	close(fd);
	snprintf(path, sizeof(path), "/dev/vfio/devices/%s", edu.cdev);
	CHECK(access(path, F_OK), "%s exists", path);
	snprintf(path, sizeof(path), "/dev/vfio/noiommu-%d", edu.group);
	s.container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	CHECK(s.container >= 0, "open /dev/vfio/vfio");
	CHECK(ioctl(s.container, VFIO_CHECK_EXTENSION, VFIO_NOIOMMU_IOMMU) == 1, "VFIO_NOIOMMU_IOMMU");
	if (geteuid()) {
		REFUSED(EPERM, open(path, O_RDWR | O_CLOEXEC));
		ok("CAP_SYS_RAWIO is wanted");
		return;
	}
	s.group = open(path, O_RDWR | O_CLOEXEC);
	CHECK(s.group >= 0, "open of %s", path);
	WORKS(ioctl(s.group, VFIO_GROUP_SET_CONTAINER, &s.container));
	REFUSED(ENODEV, ioctl(s.container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	WORKS(ioctl(s.container, VFIO_SET_IOMMU, VFIO_NOIOMMU_IOMMU));
	REFUSED(ENOTTY, ioctl(s.container, VFIO_IOMMU_GET_INFO, &info));
	REFUSED(ENOTTY, map(s.container, IOVA, anonymous(PAGE), PAGE, RW));
	s.device = ioctl(s.group, VFIO_GROUP_GET_DEVICE_FD, edu.address);
	CHECK(s.device >= 0, "GET_DEVICE_FD of %s", edu.address);
	ok("container, group and device");

	read_layout(&s);
	set_command(&s, 0x6);
	check_liveness(&s);
	fd = event();
	WORKS(set_event(s.device, VFIO_PCI_MSI_IRQ_INDEX, VFIO_IRQ_SET_ACTION_TRIGGER, fd));
	write32(&s, EDU_IRQ_RAISE, 1);
	CHECK(events(fd, 2000) == 1, "MSI");
	close(fd);
	close_session(&s);
	ok("registers and interrupts");
}
