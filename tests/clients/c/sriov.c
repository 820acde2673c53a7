// Virtual functions: enabled and disabled by sysfs, opened with a token, each in a domain of its own.
#include "client.h"

#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <sys/wait.h>

#define TOKEN "00112233-4455-6677-8899-aabbccddeeff"
#define OTHER_TOKEN "10112233-4455-6677-8899-aabbccddeeff"

static struct function owner;

static void path_of(char *path, const char *name)
{
	snprintf(path, PATH_MAX, "/sys/bus/pci/devices/%s/%s", owner.address, name);
}

// As a program writes an attribute: the bytes written, or -1.
static int enable(const char *count)
{
	char path[PATH_MAX];
	int file, written, error;

	path_of(path, "sriov_numvfs");
	file = open(path, O_WRONLY | O_CLOEXEC);
	CHECK(file >= 0, "open %s", path);
	written = write(file, count, strlen(count));
	error = errno;
	close(file);
	errno = error;
	return written;
}

static int enabled(void)
{
	char path[PATH_MAX], text[16] = "";
	int file;

	path_of(path, "sriov_numvfs");
	file = open(path, O_RDONLY | O_CLOEXEC);
	CHECK(read(file, text, sizeof(text) - 1) > 0, "read %s", path);
	close(file);
	return atoi(text);
}

static struct function virtual_function(int number)
{
	char path[PATH_MAX], name[32], target[PATH_MAX] = "";

	snprintf(name, sizeof(name), "virtfn%d", number);
	path_of(path, name);
	CHECK(readlink(path, target, sizeof(target) - 1) > 0, "readlink %s", path);
	return function_at(basename(target));
}

// Container, group and, with this after its name, the device; errno if that is refused.
static int open_with(struct session *s, const struct function *function, const char *token)
{
	char name[128];
	int error;

	*s = (struct session){ .function = *function, .iommufd = -1 };
	s->container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	s->group = open_group(function);
	CHECK(s->group >= 0, "open of group %d", function->group);
	WORKS(ioctl(s->group, VFIO_GROUP_SET_CONTAINER, &s->container));
	WORKS(ioctl(s->container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	snprintf(name, sizeof(name), "%s%s%s", function->address, token ? " vf_token=" : "",
		token ? token : "");
	s->device = ioctl(s->group, VFIO_GROUP_GET_DEVICE_FD, name);
	if (s->device < 0) {
		error = errno;
		close(s->group);
		close(s->container);
		errno = error;
		return -1;
	}
	read_layout(s);
	set_command(s, 0x6);
	return 0;
}

static void come(void)
{
	struct function function;

	CHECK(enabled() == 0, "virtual functions are enabled");
	REFUSED(EINVAL, enable("many"));
	REFUSED(ERANGE, enable("5"));
	CHECK(enable("2\n") == 2, "enable 2");
	CHECK(enabled() == 2, "what is read");
	REFUSED(EBUSY, enable("3"));
	CHECK(enabled() == 2, "what is read after a refusal");
	function = virtual_function(1);
	CHECK(function.vendor == owner.vendor && function.device == owner.device, "the ids");
	CHECK(function.group != owner.group && function.group != virtual_function(0).group, "the groups");
	ok("virtual functions come");
}

static void token(struct session *s)
{
	struct session user;
	struct function function = virtual_function(0);
	struct {
		struct vfio_device_feature feature;
		u8 uuid[16];
	} set = { .feature = { .argsz = sizeof(set), .flags = VFIO_DEVICE_FEATURE_SET } };

	REFUSED(EACCES, open_with(&user, &function, NULL));
	WORKS(open_with(s, &owner, TOKEN));
	REFUSED(EACCES, open_with(&user, &function, NULL));
	REFUSED(EACCES, open_with(&user, &function, OTHER_TOKEN));
	WORKS(open_with(&user, &function, TOKEN));
	REFUSED(ENOTTY, ioctl(user.device, VFIO_DEVICE_FEATURE, &set));
	close_session(&user);
	for (int i = 0; i < 16; i++)
		set.uuid[i] = i * 0x11 + (i ? 0 : 0x10);
	WORKS(ioctl(s->device, VFIO_DEVICE_FEATURE, &set));
	REFUSED(EACCES, open_with(&user, &function, TOKEN));
	ok("a token guards them");
}

static void domains(struct nic *nics, int request)
{
	for (int i = 0; i < 2; i++) {
		struct function function = virtual_function(i);

		WORKS(open_with(&nics[i].s, &function, OTHER_TOKEN));
		start_nic(&nics[i]);
	}
	// The same IOVA is other memory for each.
	for (u32 round = 0; round < 2; round++) {
		frame_arrives(&nics[0], &nics[0], 1 + round);
		frame_arrives(&nics[1], &nics[1], 11 + round);
	}
	WORKS(set_event(nics[0].s.device, VFIO_PCI_REQ_IRQ_INDEX, VFIO_IRQ_SET_ACTION_TRIGGER, request));
	ok("each has a domain of its own");
}

static void go(struct nic *nics, int request)
{
	struct vfio_group_status status = { .argsz = sizeof(status) };
	struct function function = virtual_function(1);
	char path[PATH_MAX];
	int child, dead;

	fflush(stdout);
	child = fork();
	if (!child) {
		// The parent's files are not this process's to hold.
		for (int i = 0; i < 2; i++)
			close_session(&nics[i].s);
		_exit(enable("0") == 1 ? 0 : 1);
	}
	CHECK(events(request, 20000) == 1, "no request for a function in use");
	CHECK(open_cdev(&nics[0].s.function) < 0, "a function that leaves can be opened");
	CHECK(!waitpid(child, &(int){ 0 }, WNOHANG), "the write has not waited");
	frame_arrives(&nics[1], &nics[1], 21);
	close_session(&nics[0].s);
	// The file of a group keeps nobody waiting.
	dead = dup(nics[1].s.group);
	close(nics[1].s.group);
	nics[1].s.group = -1;
	close_session(&nics[1].s);
	CHECK(!wait_status(child), "the write fails");
	REFUSED(ENODEV, ioctl(dead, VFIO_GROUP_GET_STATUS, &status));
	close(dead);
	CHECK(enabled() == 0, "what is read");
	REFUSED(ENOENT, open_group(&function));
	REFUSED(ENOENT, open_cdev(&function));
	path_of(path, "virtfn0");
	REFUSED(ENOENT, access(path, F_OK));
	ok("they go when they are let go of");
}

static void by_shell(void)
{
	char command[2 * PATH_MAX + 64], path[PATH_MAX];

	path_of(path, "sriov_numvfs");
	snprintf(command, sizeof(command), "echo 4 > %s && test $(cat %s) = 4", path, path);
	CHECK(!system(command), "%s", command);
	CHECK(virtual_function(3).group, "the last one");
	snprintf(command, sizeof(command), "echo 9 > %s 2>/dev/null", path);
	CHECK(system(command), "%s", command);
	snprintf(command, sizeof(command), "echo 0 > %s && test $(cat %s) = 0", path, path);
	CHECK(!system(command), "%s", command);
	ok("a shell does it too");
}

void virtual_functions(void)
{
	struct session s;
	struct nic nics[2] = { 0 };
	int request = event();

	CHECK(find_nics(&owner, 1) == 1, "no virtio-net");
	come();
	token(&s);
	domains(nics, request);
	go(nics, request);
	close_session(&s);
	by_shell();
}
