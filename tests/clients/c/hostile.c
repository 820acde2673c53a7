// Programs that are careless or mean: the calls fail as they should and the rest goes on.
#include "client.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/utsname.h>
#include <sys/wait.h>

static void everything_still_works(void)
{
	struct session s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);
	u8 *memory = anonymous(2 * PAGE);

	check_liveness(&s);
	WORKS(map(s.container, IOVA, memory, 2 * PAGE, RW));
	fill(memory, PAGE, 40);
	edu_dma(&s, IOVA, 0, PAGE, TO_EDU);
	edu_dma(&s, IOVA + PAGE, 0, PAGE, FROM_EDU);
	CHECK(holds(memory + PAGE, PAGE, 40), "a transfer");
	WORKS(unmap(s.container, 0, 0, VFIO_DMA_UNMAP_FLAG_ALL));
	close_session(&s);
	munmap(memory, 2 * PAGE);
}

static void no_descriptors_left(void *unused)
{
	struct session s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);
	struct rlimit limit = { 64, 64 };
	int last = -1, again;

	(void)unused;
	CHECK(!setrlimit(RLIMIT_NOFILE, &limit), "setrlimit");
	for (int next; (next = dup(0)) >= 0;)
		last = next;
	CHECK(errno == EMFILE, "dup");
	REFUSED(EMFILE, ioctl(s.group, VFIO_GROUP_GET_DEVICE_FD, s.function.address));
	REFUSED(EMFILE, open("/dev/vfio/vfio", O_RDWR));
	check_liveness(&s);
	WORKS(map(s.container, IOVA, anonymous(PAGE), PAGE, RW));
	close(last);
	again = ioctl(s.group, VFIO_GROUP_GET_DEVICE_FD, s.function.address);
	CHECK(again == last, "GET_DEVICE_FD gives %d instead of %d", again, last);
	close(again);
	close_session(&s);
}

static void every_mapping(void)
{
	struct session s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);
	u8 *memory = anonymous(PAGE);

	for (u64 i = 0; i < 65535; i++)
		CHECK(!map(s.container, 2 * i * PAGE, memory, PAGE, RW), "mapping %lu", i);
	REFUSED(ENOSPC, map(s.container, 2 * 65535 * PAGE, memory, PAGE, RW));
	CHECK(unmap(s.container, 0, PAGE, 0) == PAGE, "unmap of one");
	WORKS(map(s.container, 2 * 65535 * PAGE, memory, PAGE, RW));
	REFUSED(ENOSPC, map(s.container, 0, memory, PAGE, RW));
	CHECK(unmap(s.container, 0, 0, VFIO_DMA_UNMAP_FLAG_ALL) == 65535 * (long long)PAGE, "unmap of all");
	close_session(&s);
	ok("65,535 mappings and one more");
}

static void killed_while_transferring(void)
{
	for (int i = 0; i < 20; i++) {
		int child, status, pair[2];
		char byte;

		CHECK(!pipe2(pair, O_CLOEXEC), "pipe");
		fflush(stdout);
		child = fork();
		CHECK(child >= 0, "fork");
		if (!child) {
			struct session s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);
			u8 *memory = i % 2 ? anonymous(2 * PAGE) : file_memory(2 * PAGE, NULL);

			WORKS(map(s.container, IOVA, memory, 2 * PAGE, RW));
			CHECK(write(pair[1], "", 1) == 1, "write");
			for (;;) {
				edu_dma(&s, IOVA, 0, PAGE, TO_EDU);
				edu_dma(&s, IOVA + PAGE, 0, PAGE, FROM_EDU);
			}
		}
		close(pair[1]);
		CHECK(read(pair[0], &byte, 1) == 1, "the child ended early");
		close(pair[0]);
		usleep(i * 500);
		kill(child, SIGKILL);
		status = wait_status(child);
		CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "wait status %#x", status);
		everything_still_works();
	}
	ok("killed in the middle of a transfer");
}

static volatile bool stop;

// Long enough for some calls to find memory as it is now.
static void linger(void)
{
	for (volatile int i = 0; i < 300; i++)
		;
}

static void *change_request(void *argument)
{
	volatile struct vfio_iommu_type1_dma_map *request = argument;

	while (!stop) {
		request->argsz = 0;
		request->size = 1ul << 62;
		request->iova = ~0ul;
		request->flags = ~0u;
		linger();
		request->argsz = sizeof(*request);
		request->flags = RW;
		request->iova = IOVA;
		request->size = PAGE;
		linger();
	}
	return NULL;
}

static void *change_length(void *argument)
{
	volatile u32 *argsz = argument;

	while (!stop) {
		*argsz = 4096;
		*argsz = sizeof(struct vfio_iommu_type1_info);
	}
	return NULL;
}

// What is judged must be what is used: no half of one request and half of another.
static void memory_that_changes(void)
{
	struct session s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);
	struct vfio_iommu_type1_dma_map request = { .vaddr = (uintptr_t)anonymous(PAGE) };
	u8 *space = anonymous(2 * PAGE);
	struct vfio_iommu_type1_info *info = (void *)(space + PAGE - sizeof(*info));
	pthread_t thread;
	int mapped = 0;

	CHECK(!pthread_create(&thread, NULL, change_request, &request), "pthread_create");
	for (int i = 0; i < 3000; i++) {
		if (!ioctl(s.container, VFIO_IOMMU_MAP_DMA, &request)) {
			mapped++;
			CHECK(unmap(s.container, 0, 0, VFIO_DMA_UNMAP_FLAG_ALL) == PAGE,
				"a mapping of another size came to be");
		}
	}
	stop = true;
	pthread_join(thread, NULL);
	stop = false;

	munmap(space + PAGE, PAGE);
	info->argsz = sizeof(*info);
	CHECK(!pthread_create(&thread, NULL, change_length, &info->argsz), "pthread_create");
	for (int i = 0; i < 3000; i++)
		CHECK(!ioctl(s.container, VFIO_IOMMU_GET_INFO, info) || errno == EFAULT, "GET_INFO");
	stop = true;
	pthread_join(thread, NULL);
	stop = false;
	close_session(&s);
	ok("memory that changes during a call (%d of 3000 mapped)", mapped);
}

static void every_number(void)
{
	struct session s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);
	int iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	int objects[] = { s.container, s.group, s.device, iommu };
	u8 *memory = anonymous(2 * PAGE);
	u32 sizes[] = { 0, 1, 8, 64, 4096, ~0u };

	munmap(memory + PAGE, PAGE);
	for (size_t object = 0; object < COUNT(objects); object++) {
		for (u32 number = 0; number < 256; number++) {
			for (size_t size = 0; size < COUNT(sizes); size++) {
				memset(memory, 0xff, PAGE);
				*(u32 *)memory = sizes[size];
				ioctl(objects[object], _IO(';', number), memory);
				memset(memory, 0, PAGE);
				*(u32 *)memory = sizes[size];
				ioctl(objects[object], _IO(';', number), memory);
			}
			ioctl(objects[object], _IO(';', number), NULL);
			ioctl(objects[object], _IO(';', number), memory + PAGE - 4);
			ioctl(objects[object], _IO(';', number), ~0ul);
		}
	}
	close(iommu);
	close_session(&s);
	everything_still_works();
	ok("every number, with every kind of pointer");
}

static volatile sig_atomic_t alarms;

static void alarmed(int signal)
{
	(void)signal;
	alarms++;
}

static void many_signals(void)
{
	struct session s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);
	struct sigaction action = { .sa_handler = alarmed, .sa_flags = SA_RESTART };
	struct itimerval timer = { { 0, 200 }, { 0, 200 } }, none = { 0 };
	u8 *memory = anonymous(PAGE);

	CHECK(!sigaction(SIGALRM, &action, NULL), "sigaction");
	CHECK(!setitimer(ITIMER_REAL, &timer, NULL), "setitimer");
	for (int i = 0; i < 2000; i++) {
		WORKS(map(s.container, IOVA, memory, PAGE, RW));
		CHECK(unmap(s.container, IOVA, PAGE, 0) == PAGE, "unmap");
	}
	CHECK(!setitimer(ITIMER_REAL, &none, NULL), "setitimer");
	signal(SIGALRM, SIG_DFL);
	close_session(&s);
	ok("signals during calls (%d)", (int)alarms);
}

static void *map_many(void *argument)
{
	u8 *memory = anonymous(PAGE);
	struct session *s = argument;
	static u32 next;
	u64 iova = IOVA + __sync_fetch_and_add(&next, 1) * 0x100000ul;

	for (int i = 0; i < 1000; i++) {
		WORKS(map(s->container, iova, memory, PAGE, RW));
		CHECK(unmap(s->container, iova, PAGE, 0) == PAGE, "unmap");
	}
	return NULL;
}

static void many_threads(void)
{
	struct session s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);
	pthread_t threads[8];

	for (size_t i = 0; i < COUNT(threads); i++)
		CHECK(!pthread_create(&threads[i], NULL, map_many, &s), "pthread_create");
	for (size_t i = 0; i < COUNT(threads); i++)
		pthread_join(threads[i], NULL);
	close_session(&s);
	ok("eight threads at once");
}

// A program's own filter comes on top of the one it runs under.
static void own_filter(void *unused)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_uname, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { COUNT(code), code };
	struct utsname name;

	(void)unused;
	CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "NO_NEW_PRIVS");
	CHECK(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), "PR_SET_SECCOMP");
	REFUSED(EPERM, uname(&name));
	everything_still_works();
}

static void not_dumpable(void *unused)
{
	(void)unused;
	CHECK(!prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "PR_SET_DUMPABLE");
	everything_still_works();
}

void hostile(void)
{
	in_child(no_descriptors_left, NULL);
	ok("no descriptors left");
	every_mapping();
	killed_while_transferring();
	memory_that_changes();
	every_number();
	many_signals();
	many_threads();
	in_child(own_filter, NULL);
	ok("its own filter");
	everything_still_works();
}

/* A process that even others of its user may not look into. */
void closed(void)
{
	in_child(not_dumpable, NULL);
	ok("not dumpable");
	everything_still_works();
}
