// The KVM link: a VM is told of VFIO files through KVM's own pseudo device, which the real kernel made.
#include "client.h"

#include <fcntl.h>
#include <linux/kvm.h>

static int vfio_file(int device, u64 attribute, int *file)
{
	struct kvm_device_attr attr = {
		.group = KVM_DEV_VFIO_GROUP,
		.attr = attribute,
		.addr = (uintptr_t)file,
	};

	return ioctl(device, KVM_SET_DEVICE_ATTR, &attr);
}

static int add(int device, int file)
{
	return vfio_file(device, KVM_DEV_VFIO_GROUP_ADD, &file);
}

static int delete(int device, int file)
{
	return vfio_file(device, KVM_DEV_VFIO_GROUP_DEL, &file);
}

// A VM with KVM's VFIO pseudo device.
static int make_device(int kvm, int *vm)
{
	struct kvm_create_device device = { .type = KVM_DEV_TYPE_VFIO };

	*vm = ioctl(kvm, KVM_CREATE_VM, 0);
	CHECK(*vm >= 0, "KVM_CREATE_VM");
	WORKS(ioctl(*vm, KVM_CREATE_DEVICE, &device));
	return device.fd;
}

void kvm(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), null = open("/dev/null", O_RDWR | O_CLOEXEC);
	int vm, other, copy, again, machine, other_machine;
	struct session s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU), bound;

	CHECK(kvm >= 0, "open /dev/kvm");
	vm = make_device(kvm, &machine);
	other = make_device(kvm, &other_machine);
	WORKS(add(vm, s.group));
	REFUSED(EEXIST, add(vm, s.group));
	copy = dup(s.group);
	REFUSED(EEXIST, add(vm, copy));
	close(copy);
	WORKS(add(other, s.group));
	ok("a group is added once to each VM, whatever its descriptor");

	REFUSED(EBADF, add(vm, -1));
	REFUSED(EINVAL, add(vm, null));
	REFUSED(EFAULT, vfio_file(vm, KVM_DEV_VFIO_GROUP_ADD, NULL));
	REFUSED(ENXIO, vfio_file(vm, 99, &s.group));
	REFUSED(EBADF, delete(vm, -1));
	REFUSED(ENOENT, delete(vm, null));
	ok("what is no VFIO file is refused");

	bound = open_iommufd(find_nvme());
	WORKS(add(vm, bound.device));
	REFUSED(EEXIST, add(vm, bound.device));
	WORKS(delete(vm, bound.device));
	REFUSED(ENOENT, delete(vm, bound.device));
	ok("a bound device is added and deleted");

	WORKS(delete(vm, s.group));
	REFUSED(ENOENT, delete(vm, s.group));
	WORKS(add(vm, s.group));
	ok("a group is deleted and added again");

	copy = dup(vm);
	close(vm);
	REFUSED(EEXIST, add(copy, s.group));
	CHECK(dup2(other, vm) == vm, "dup2");
	REFUSED(EEXIST, add(vm, s.group));
	WORKS(delete(other, s.group));
	WORKS(add(vm, s.group));
	close(copy);
	close(vm);
	close(machine);
	again = make_device(kvm, &copy);
	CHECK(copy == vm || copy == machine, "the VM is %d", copy);
	CHECK(again == vm || again == machine, "the device is %d", again);
	WORKS(add(again, s.group));
	REFUSED(EEXIST, add(again, s.group));
	REFUSED(EEXIST, add(other, s.group));
	ok("an open file is known by itself, not by its number");
	close_session(&bound);
	close_session(&s);
}
