// Descriptors travel: dup, fork, threads, sockets, exec. Objects end with their last descriptor.
#include "client.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

static void duplicates(void)
{
	struct session s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);
	struct session other = s;
	int group = open_group(&s.function);

	CHECK(group == -1 && errno == EBUSY, "the group opens twice");
	other.device = fcntl(s.device, F_DUPFD_CLOEXEC, 100);
	other.container = dup(s.container);
	other.group = dup(s.group);
	check_liveness(&other);
	WORKS(map(s.container, IOVA, anonymous(PAGE), PAGE, RW));
	REFUSED(EEXIST, map(other.container, IOVA, anonymous(PAGE), PAGE, RW));
	close_session(&s);
	REFUSED(EBUSY, open_group(&s.function));
	check_liveness(&other);
	CHECK(unmap(other.container, IOVA, PAGE, 0) == PAGE, "unmap by the duplicate");
	close_session(&other);
	s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);
	WORKS(map(s.container, IOVA, anonymous(PAGE), PAGE, RW));
	close_session(&s);
	ok("a duplicate is the same object, and keeps it");

	group = open_group(&s.function);
	other.group = dup(group);
	close(group);
	REFUSED(EBUSY, open_group(&s.function));
	close(other.group);
	group = open_group(&s.function);
	CHECK(group >= 0, "the group opens again");
	close(group);
	ok("a duplicate before the first call");
}

static void use_everything(void *argument)
{
	struct session *s = argument;
	u8 *memory = anonymous(2 * PAGE);

	check_liveness(s);
	WORKS(map(s->container, IOVA, memory, 2 * PAGE, RW));
	fill(memory, PAGE, 20);
	edu_dma(s, IOVA, 0, PAGE, TO_EDU);
	edu_dma(s, IOVA + PAGE, 0, PAGE, FROM_EDU);
	CHECK(holds(memory + PAGE, PAGE, 20), "a transfer");
	CHECK(unmap(s->container, IOVA, 2 * PAGE, 0) == 2 * PAGE, "unmap");
}

static void map_and_die(void *argument)
{
	struct session *s = argument;

	WORKS(map(s->container, IOVA, anonymous(PAGE), PAGE, RW));
}

static void *in_thread(void *argument)
{
	use_everything(argument);
	return NULL;
}

static void children_and_threads(void)
{
	struct session s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);
	pthread_t thread;

	in_child(use_everything, &s);
	use_everything(&s);
	ok("a child uses the descriptors");

	in_child(map_and_die, &s);
	edu_dma(&s, IOVA, 0, 64, FROM_EDU);
	CHECK(unmap(s.container, IOVA, PAGE, 0) == PAGE, "the mapping outlives its process");
	use_everything(&s);
	ok("a child that mapped is gone");

	CHECK(!pthread_create(&thread, NULL, in_thread, &s), "pthread_create");
	pthread_join(thread, NULL);
	close_session(&s);
	ok("a thread uses the descriptors");
}

static void take_and_use(void *argument)
{
	int socket = *(int *)argument;
	struct session s = { 0 };

	s.device = receive_descriptor(socket);
	s.container = receive_descriptor(socket);
	read_layout(&s);
	use_everything(&s);
}

static void sockets(void)
{
	int pair[2], child;
	struct session s;

	CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), "socketpair");
	fflush(stdout);
	child = fork();
	CHECK(child >= 0, "fork");
	if (!child) {
		take_and_use(&pair[1]);
		_exit(0);
	}
	s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);
	send_descriptor(pair[0], s.device);
	send_descriptor(pair[0], s.container);
	close_session(&s);
	child = wait_status(child);
	CHECK(!child, "the receiver's wait status is %#x", child);
	close(pair[0]);
	close(pair[1]);
	s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);
	close_session(&s);
	ok("descriptors sent over a socket");
}

void executed(int device, int container)
{
	struct session s = { .device = device, .container = container };

	read_layout(&s);
	CHECK(unmap(container, IOVA, PAGE, 0) == PAGE, "the mapping of the program before");
	use_everything(&s);
}

static void execute(void *argument)
{
	struct session *s = argument;
	char device[16], container[16];

	snprintf(device, sizeof(device), "%d", s->device);
	snprintf(container, sizeof(container), "%d", s->container);
	WORKS(map(s->container, IOVA, anonymous(PAGE), PAGE, RW));
	CHECK(!fcntl(s->device, F_SETFD, 0) && !fcntl(s->container, F_SETFD, 0), "F_SETFD");
	execl("/proc/self/exe", "client", "executed", device, container, NULL);
	fail(__FILE__, __LINE__, "exec");
}

static void executions(void)
{
	struct session s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);

	in_child(execute, &s);
	use_everything(&s);
	close_session(&s);
	ok("descriptors kept over exec");
}

static void orders_of_closing(void)
{
	static const u8 orders[6][3] = {
		{ 0, 1, 2 }, { 0, 2, 1 }, { 1, 0, 2 }, { 1, 2, 0 }, { 2, 0, 1 }, { 2, 1, 0 },
	};

	for (int i = 0; i < 60; i++) {
		struct session s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);
		int descriptors[3] = { s.device, s.group, s.container };

		WORKS(map(s.container, IOVA, anonymous(PAGE), PAGE, RW));
		for (int j = 0; j < 3; j++)
			close(descriptors[orders[i % 6][j]]);
	}
	ok("every order of closing, and opening again at once");
}

static void one_of_two_devices(void)
{
	struct session edu = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);
	struct function nvme = find_nvme();
	int group = open_group(&nvme), device;

	CHECK(group >= 0, "open of nvme's group");
	WORKS(ioctl(group, VFIO_GROUP_SET_CONTAINER, &edu.container));
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, nvme.address);
	CHECK(device >= 0, "GET_DEVICE_FD of nvme");
	use_everything(&edu);
	close(device);
	close(group);
	use_everything(&edu);
	close_session(&edu);
	ok("two groups in one container");
}

static void killed_owner(void)
{
	int pair[2], status, child;
	char byte;

	CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), "socketpair");
	fflush(stdout);
	child = fork();
	CHECK(child >= 0, "fork");
	if (!child) {
		struct session s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);

		WORKS(map(s.container, IOVA, anonymous(PAGE), PAGE, RW));
		CHECK(write(pair[1], "", 1) == 1, "write");
		for (;;)
			pause();
	}
	CHECK(read(pair[0], &byte, 1) == 1, "read");
	{
		struct function edu = find_edu();

		REFUSED(EBUSY, open_group(&edu));
	}
	kill(child, SIGKILL);
	status = wait_status(child);
	CHECK(WIFSIGNALED(status), "wait status %#x", status);
	struct session s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);
	use_everything(&s);
	close_session(&s);
	close(pair[0]);
	close(pair[1]);
	ok("a killed owner's objects are released");
}

void lifecycle(void)
{
	duplicates();
	children_and_threads();
	sockets();
	executions();
	orders_of_closing();
	one_of_two_devices();
	killed_owner();
}
