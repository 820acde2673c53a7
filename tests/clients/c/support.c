// Checks, children, descriptors over sockets, memory: nothing of VFIO in here.
#include "client.h"

#include <poll.h>
#include <stdarg.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

void ok(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	printf("ok ");
	vprintf(format, arguments);
	printf("\n");
	va_end(arguments);
}

void fail(const char *file, int line, const char *format, ...)
{
	int error = errno;
	va_list arguments;

	va_start(arguments, format);
	fflush(stdout);
	fprintf(stderr, "FAILED %s:%d: ", file, line);
	vfprintf(stderr, format, arguments);
	fprintf(stderr, " (errno %d: %s)\n", error, strerror(error));
	va_end(arguments);
	_exit(1);
}

void refused(const char *file, int line, const char *call, long result, int error)
{
	if (result != -1)
		fail(file, line, "%s gives %ld instead of %s", call, result, strerror(error));
	if (errno != error)
		fail(file, line, "%s does not give errno %d, %s", call, error, strerror(error));
}

void *anonymous(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(memory != MAP_FAILED, "mmap of %zu bytes", size);
	return memory;
}

void *file_memory(size_t size, int *descriptor)
{
	int file = memfd_create("client", MFD_CLOEXEC);
	void *memory;

	CHECK(file >= 0, "memfd_create");
	CHECK(!ftruncate(file, size), "ftruncate");
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	CHECK(memory != MAP_FAILED, "mmap of a memfd");
	if (descriptor)
		*descriptor = file;
	else
		close(file);
	return memory;
}

void fill(void *memory, size_t size, u32 seed)
{
	u8 *bytes = memory;

	for (size_t i = 0; i < size; i++) {
		seed = seed * 1103515245 + 12345;
		bytes[i] = seed >> 16;
	}
}

bool holds(const void *memory, size_t size, u32 seed)
{
	const u8 *bytes = memory;

	for (size_t i = 0; i < size; i++) {
		seed = seed * 1103515245 + 12345;
		if (bytes[i] != (u8)(seed >> 16))
			return false;
	}
	return true;
}

bool all_bytes(const void *memory, size_t size, u8 value)
{
	const u8 *bytes = memory;

	for (size_t i = 0; i < size; i++)
		if (bytes[i] != value)
			return false;
	return true;
}

int event(void)
{
	int descriptor = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	CHECK(descriptor >= 0, "eventfd");
	return descriptor;
}

u64 events(int descriptor, int milliseconds)
{
	struct pollfd poller = { .fd = descriptor, .events = POLLIN };
	u64 count = 0;

	if (poll(&poller, 1, milliseconds) == 1)
		CHECK(read(descriptor, &count, sizeof(count)) == sizeof(count), "read of an eventfd");
	return count;
}

int wait_status(int child)
{
	int status;

	while (waitpid(child, &status, 0) < 0)
		CHECK(errno == EINTR, "waitpid");
	return status;
}

void in_child(void (*body)(void *), void *argument)
{
	int child, status;

	fflush(stdout);
	child = fork();
	CHECK(child >= 0, "fork");
	if (!child) {
		body(argument);
		fflush(stdout);
		_exit(0);
	}
	status = wait_status(child);
	CHECK(WIFEXITED(status) && !WEXITSTATUS(status), "a child's wait status is %#x", status);
}

void send_descriptor(int socket, int descriptor)
{
	char byte = 0;
	struct iovec iov = { &byte, 1 };
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	struct msghdr message = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.space,
		.msg_controllen = sizeof(control.space),
	};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &descriptor, sizeof(int));
	CHECK(sendmsg(socket, &message, 0) == 1, "sendmsg of a descriptor");
}

int receive_descriptor(int socket)
{
	char byte;
	struct iovec iov = { &byte, 1 };
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	struct msghdr message = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.space,
		.msg_controllen = sizeof(control.space),
	};
	struct cmsghdr *header;
	int descriptor;

	CHECK(recvmsg(socket, &message, 0) == 1, "recvmsg of a descriptor");
	header = CMSG_FIRSTHDR(&message);
	CHECK(header && header->cmsg_type == SCM_RIGHTS, "no descriptor in the message");
	memcpy(&descriptor, CMSG_DATA(header), sizeof(int));
	return descriptor;
}
