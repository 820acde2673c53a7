// Registers behind mappings (`mmio = "map"`), reached with the instructions that compilers and drivers emit.
#include "client.h"

#include <cpuid.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

static volatile u8 *bar(const struct session *s, u32 index, u64 *size)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = index };
	void *memory;

	WORKS(ioctl(s->device, VFIO_DEVICE_GET_REGION_INFO, &info));
	CHECK(info.flags & VFIO_REGION_INFO_FLAG_MMAP, "BAR %u cannot be mapped", index);
	memory = mmap(NULL, info.size, PROT_READ | PROT_WRITE, MAP_SHARED, s->device, info.offset);
	CHECK(memory != MAP_FAILED, "mmap of BAR %u", index);
	if (size)
		*size = info.size;
	return memory;
}

#define REGISTER(type, at) (*(volatile type *)(registers + (at)))

static volatile u8 *registers;

static void plain(const struct session *s)
{
	u32 value, seen;

	CHECK(REGISTER(u32, EDU_ID) == 0x010000ed, "identification %#x", REGISTER(u32, EDU_ID));
	for (u32 i = 1; i < 100; i++) {
		REGISTER(u32, EDU_LIVENESS) = i * 0x01020305;
		value = REGISTER(u32, EDU_LIVENESS);
		CHECK(value == ~(i * 0x01020305), "liveness %#x of %#x", value, i * 0x01020305);
	}
	seen = read32(s, EDU_LIVENESS);
	CHECK(seen == value, "pread gives %#x, the mapping %#x", seen, value);
	REGISTER(u64, EDU_DMA_SOURCE) = 0x1122334455667788;
	CHECK(REGISTER(u64, EDU_DMA_SOURCE) == 0x1122334455667788, "a register of 8 bytes");
	ok("loads and stores of 4 and 8 bytes");
}

#define ASM_MEMORY(instruction, ...) __asm__ volatile(instruction : __VA_ARGS__ : "memory", "cc")

// Every check leaves in the register what the processor would in memory; edu gives back the inverse of what was
// written to liveness, so that what an instruction reads is not what it wrote.
static void odd(void)
{
	volatile u32 *live = &REGISTER(u32, EDU_LIVENESS), *dma = &REGISTER(u32, EDU_DMA_SOURCE);
	volatile u64 *wide = &REGISTER(u64, EDU_DMA_SOURCE);
	u32 value, flag;
	u64 long_value;

	*dma = 41;
	ASM_MEMORY("lock incl %0", "+m"(*dma) :);
	CHECK(*dma == 42, "lock inc: %u", *dma);
	ASM_MEMORY("addl $8, %0", "+m"(*dma) :);
	ASM_MEMORY("xorl $0xff, %0", "+m"(*dma) :);
	CHECK(*dma == (50 ^ 0xff), "add and xor: %u", *dma);
	ASM_MEMORY("shll $3, %0", "+m"(*dma) :);
	ASM_MEMORY("notl %0", "+m"(*dma) :);
	CHECK(*dma == ~((50 ^ 0xffu) << 3), "shl and not: %#x", *dma);
	value = 7;
	*dma = 5;
	ASM_MEMORY("xchgl %1, %0", "+m"(*dma), "+r"(value) :);
	CHECK(value == 5 && *dma == 7, "xchg: %u %u", value, *dma);
	ASM_MEMORY("lock xaddl %1, %0", "+m"(*dma), "+r"(value) :);
	CHECK(value == 7 && *dma == 12, "xadd: %u %u", value, *dma);
	value = 12;
	ASM_MEMORY("lock cmpxchgl %3, %0; sete %b2", "+m"(*dma), "+a"(value), "=&q"(flag) : "r"(99));
	CHECK((flag & 1) && *dma == 99, "cmpxchg that matches: %u", *dma);
	ASM_MEMORY("lock cmpxchgl %3, %0; sete %b2", "+m"(*dma), "+a"(value), "=&q"(flag) : "r"(1));
	CHECK(!(flag & 1) && value == 99 && *dma == 99, "cmpxchg that does not: %u", value);
	*live = 0xff00ff00;
	ASM_MEMORY("cmpl $0x00ff00ff, %1; sete %b0", "=q"(flag) : "m"(*live));
	CHECK(flag & 1, "cmp");
	ASM_MEMORY("testl $0x00ff0000, %1; setne %b0", "=q"(flag) : "m"(*live));
	CHECK(flag & 1, "test");
	ASM_MEMORY("btl $3, %1; setc %b0", "=q"(flag) : "m"(*live));
	CHECK(flag & 1, "bt");
	*wide = 0x8877665544332211;
	ASM_MEMORY("movslq %1, %0", "=r"(long_value) : "m"(*live));
	CHECK(long_value == 0x00ff00ff, "movsxd: %#lx", long_value);
	ASM_MEMORY("pushq %1; popq %0", "=r"(long_value) : "m"(*wide));
	CHECK(long_value == 0x8877665544332211, "push: %#lx", long_value);
	ASM_MEMORY("movnti %1, %0", "=m"(*wide) : "r"(5ul));
	CHECK(*wide == 5, "movnti");
	ok("locked, arithmetic and stack instructions");
}

static void vectors(void)
{
	u8 out[256], in[256];
	u64 words[4] = { 0x1111111111111111, 0x2222222222222222, 0x3333333333333333, 0x4444444444444444 };
	volatile u64 *wide = &REGISTER(u64, EDU_DMA_SOURCE);

	ASM_MEMORY("movdqu %1, %%xmm9; movups %%xmm9, %0", "=m"(*(volatile u8(*)[16])wide) : "m"(words));
	CHECK(wide[0] == words[0] && wide[1] == words[1], "a store of 16 bytes");
	ASM_MEMORY("movdqu %1, %%xmm9; movdqu %%xmm9, %0", "=m"(out) : "m"(*(volatile u8(*)[16])wide));
	CHECK(!memcmp(out, words, 16), "a load of 16 bytes");
	ASM_MEMORY("movq %1, %%xmm3; movq %%xmm3, %0", "=m"(out) : "m"(*wide));
	CHECK(!memcmp(out, words, 8), "movq");
	if (__builtin_cpu_supports("avx")) {
		ASM_MEMORY("vmovdqu %1, %%ymm14; vmovdqu %%ymm14, %0", "=m"(*(volatile u8(*)[32])wide) : "m"(words));
		CHECK(wide[0] == words[0] && wide[1] == words[1] && wide[2] == words[2],
			"a store of 32 bytes");
		ASM_MEMORY("vmovdqu %1, %%ymm14; vmovdqu %%ymm14, %0; vzeroupper", "=m"(out)
			: "m"(*(volatile u8(*)[32])wide));
		CHECK(!memcmp(out, words, 16), "a load of 32 bytes");
	}
	fill(in, sizeof(in), 5);
	// Whatever the C library's own copies are made of.
	memcpy((void *)(registers + EDU_DMA_SOURCE), in, 16);
	memcpy(out, (void *)(registers + EDU_DMA_SOURCE), 16);
	CHECK(!memcmp(out, in, 16), "memcpy of 16 bytes");
	for (u32 size = 1; size < sizeof(out); size += 13)
		memcpy(out, (void *)registers, size);
	ok("vectors");
}

// CPUID leaf 7, ecx bit 28.
static bool has_movdir64b(void)
{
	u32 a, b, c, d;

	return __get_cpuid_count(7, 0, &a, &b, &c, &d) && c >> 28 & 1;
}

static void strings(void)
{
	volatile u64 *wide = &REGISTER(u64, EDU_DMA_SOURCE);
	u64 words[2] = { 0xaaaaaaaaaaaaaaaa, 0xbbbbbbbbbbbbbbbb }, back[2] = { 0 };
	u32 ones[1024];
	void *to = (void *)wide, *from = words;
	u64 count = 2;

	ASM_MEMORY("rep movsq", "+D"(to), "+S"(from), "+c"(count) :);
	CHECK(!count && to == wide + 2 && from == words + 2, "registers after rep movs");
	to = back, from = (void *)wide, count = 2;
	ASM_MEMORY("rep movsq", "+D"(to), "+S"(from), "+c"(count) :);
	CHECK(!memcmp(back, words, 16), "rep movs from and to registers");
	to = (void *)wide, count = 2;
	ASM_MEMORY("rep stosq", "+D"(to), "+c"(count) : "a"(77ul));
	CHECK(wide[0] == 77 && wide[1] == 77, "rep stos");
	// More than is done at once; the end of the BAR reads as ones.
	to = ones, from = (void *)(registers + 0x1000), count = COUNT(ones);
	ASM_MEMORY("rep movsl", "+D"(to), "+S"(from), "+c"(count) :);
	CHECK(!count && all_bytes(ones, sizeof(ones), 0xff), "a long rep movs");
	wide[0] = 0x1111111111111111, wide[1] = 0x2222222222222222;
	words[0] = 0x1111111111111111, words[1] = 0;
	to = (void *)wide, from = words, count = 5;
	ASM_MEMORY("repe cmpsq", "+D"(to), "+S"(from), "+c"(count) :);
	CHECK(count == 3 && from == words + 2, "repe cmps leaves %lu", count);
	to = (void *)wide, count = 5;
	ASM_MEMORY("repne scasq", "+D"(to), "+c"(count) : "a"(0x2222222222222222));
	CHECK(count == 3 && to == (u64 *)wide + 2, "repne scas leaves %lu", count);
	ok("string instructions");
}

// Where memory ends in the middle: what was done is done, and the address of the fault is the first byte missing.
static sigjmp_buf page_end;
static volatile u64 missing;

static void at_page_end(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	missing = (u64)info->si_addr;
	siglongjmp(page_end, 1);
}

static void page_ends(void)
{
	struct sigaction action = { .sa_sigaction = at_page_end, .sa_flags = SA_SIGINFO };
	u8 *pages = anonymous(2 * PAGE);
	volatile u64 *wide = &REGISTER(u64, EDU_DMA_SOURCE);

	munmap(pages + PAGE, PAGE);
	CHECK(!sigaction(SIGSEGV, &action, NULL), "sigaction");
	wide[0] = 0x0807060504030201;
	if (!sigsetjmp(page_end, 1)) {
		void *to = pages + PAGE - 8, *from = (void *)wide;
		u64 count = 2;

		ASM_MEMORY("rep movsq", "+D"(to), "+S"(from), "+c"(count) :);
		CHECK(false, "no SIGSEGV");
	}
	CHECK(missing == (u64)(pages + PAGE), "SIGSEGV at %#lx", missing);
	CHECK(!memcmp(pages + PAGE - 8, "\1\2\3\4\5\6\7\10", 8), "what was moved before the end");
	signal(SIGSEGV, SIG_DFL);
	munmap(pages, PAGE);
	ok("rep movs across the end of memory");
}

// Instructions that not every processor has.
static void rare(void)
{
	volatile u64 *wide = &REGISTER(u64, EDU_DMA_SOURCE);
	u64 low = 0, high = 0, words[8] = { 1, 2, 3, 4, 5, 6, 7, 8 }, out[8] = { 0 };
	u8 equal;

	wide[0] = wide[1] = 0;
	ASM_MEMORY("lock cmpxchg16b %0; sete %b1", "+m"(*(volatile u8(*)[16])wide), "=q"(equal), "+a"(low), "+d"(high)
		: "b"(77ul), "c"(88ul));
	CHECK(equal && wide[0] == 77 && wide[1] == 88, "cmpxchg16b that matches");
	if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
		u32 mask = 2;

		ASM_MEMORY("kmovd %2, %%k3; vmovdqu64 %1, %%xmm17; vmovdqu64 %%xmm17, %0%{%%k3%}",
			"+m"(*(volatile u8(*)[16])wide) : "m"(words), "r"(mask));
		CHECK(wide[0] == 77 && wide[1] == 2, "a masked store: %lu %lu", wide[0], wide[1]);
		ASM_MEMORY("kmovd %2, %%k3; vmovdqu64 %1, %%xmm17%{%%k3%}%{z%}; vmovdqu64 %%xmm17, %0", "=m"(out)
			: "m"(*(volatile u8(*)[16])wide), "r"(mask));
		CHECK(out[0] == 0 && out[1] == 2, "a masked load");
		ok("cmpxchg16b and masked moves");
	} else {
		printf("this processor has no masked moves\n");
	}
	if (has_movdir64b()) {
		ASM_MEMORY("movdir64b %1, %0", : "r"(registers + 0x1000), "m"(words));
		ok("movdir64b");
	} else {
		printf("this processor has no movdir64b\n");
	}
}

static void factorials(struct session *s)
{
	int done = event();

	WORKS(set_event(s->device, VFIO_PCI_MSI_IRQ_INDEX, VFIO_IRQ_SET_ACTION_TRIGGER, done));
	REGISTER(u32, EDU_STATUS) = 0x80;
	REGISTER(u32, EDU_FACTORIAL) = 10;
	CHECK(events(done, 5000) == 1, "no interrupt after a factorial");
	CHECK(REGISTER(u32, EDU_FACTORIAL) == 3628800, "10! is %u", REGISTER(u32, EDU_FACTORIAL));
	REGISTER(u32, EDU_IRQ_ACK) = REGISTER(u32, EDU_IRQ_STATUS);
	CHECK(!REGISTER(u32, EDU_IRQ_STATUS), "an interrupt stays");
	WORKS(set_none(s->device, VFIO_PCI_MSI_IRQ_INDEX, VFIO_IRQ_SET_ACTION_TRIGGER, 0));
	ok("a register that starts work, and its interrupt");
}

static void transfers(struct session *s)
{
	u8 *memory = anonymous(2 * PAGE);

	WORKS(map(s->container, IOVA, memory, 2 * PAGE, RW));
	fill(memory, PAGE, 3);
	for (u32 way = 0; way < 2; way++) {
		REGISTER(u64, EDU_DMA_SOURCE) = way ? EDU_BUFFER : IOVA;
		REGISTER(u64, EDU_DMA_DESTINATION) = way ? IOVA + PAGE : EDU_BUFFER;
		REGISTER(u64, EDU_DMA_COUNT) = PAGE;
		REGISTER(u64, EDU_DMA_COMMAND) = way ? 3 : 1;
		while (REGISTER(u64, EDU_DMA_COMMAND) & 1)
			;
	}
	CHECK(!memcmp(memory, memory + PAGE, PAGE), "there and back again");
	WORKS(unmap(s->container, IOVA, 2 * PAGE, 0));
	ok("DMA");
}

enum { THREADS = 4, ROUNDS = 400 };
static u32 shared_count;

static void *count_up(void *argument)
{
	volatile u32 *counter = &REGISTER(u32, EDU_DMA_SOURCE);

	(void)argument;
	for (int i = 0; i < ROUNDS; i++) {
		ASM_MEMORY("lock incl %0", "+m"(*counter) :);
		CHECK(REGISTER(u32, EDU_ID) == 0x010000ed, "identification");
		__atomic_fetch_add(&shared_count, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void threads(void)
{
	pthread_t thread[THREADS];

	REGISTER(u32, EDU_DMA_SOURCE) = 0;
	for (int i = 0; i < THREADS; i++)
		CHECK(!pthread_create(&thread[i], NULL, count_up, NULL), "pthread_create");
	for (int i = 0; i < THREADS; i++)
		CHECK(!pthread_join(thread[i], NULL), "pthread_join");
	CHECK(shared_count == THREADS * ROUNDS, "threads that counted %u", shared_count);
	CHECK(REGISTER(u32, EDU_DMA_SOURCE) == THREADS * ROUNDS, "a locked counter of %u",
		REGISTER(u32, EDU_DMA_SOURCE));
	ok("%d threads at once, locked", THREADS);
}

static void in_fork(void *argument)
{
	(void)argument;
	REGISTER(u32, EDU_LIVENESS) = 17;
	CHECK(REGISTER(u32, EDU_LIVENESS) == ~17u, "liveness in a child");
	count_up(NULL);
}

static void forks(void)
{
	int child, status;

	for (int i = 0; i < 5; i++)
		in_child(in_fork, NULL);
	child = vfork();
	if (!child)
		_exit(REGISTER(u32, EDU_ID) == 0x010000ed ? 7 : 8);
	status = wait_status(child);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7, "vfork: %#x", status);
	child = fork();
	if (!child) {
		raise(SIGSTOP);
		_exit(REGISTER(u32, EDU_ID) == 0x010000ed ? 9 : 8);
	}
	CHECK(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status), "a stop is not seen");
	kill(child, SIGCONT);
	status = wait_status(child);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 9, "after a stop: %#x", status);
	CHECK(!system("exit 0"), "another program");
	ok("children, also stopped ones");
}

static volatile sig_atomic_t ticks, wrong;

static void tick(int signal)
{
	(void)signal;
	ticks++;
	if (REGISTER(u32, EDU_ID) != 0x010000ed)
		wrong++;
}

static void signals(void)
{
	struct sigaction action = { .sa_handler = tick };
	timer_t timer;
	struct itimerspec often = { { 0, 300000 }, { 0, 300000 } }, never = { 0 };
	struct sigevent kind = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2 };

	CHECK(!sigaction(SIGUSR2, &action, NULL), "sigaction");
	CHECK(!timer_create(CLOCK_MONOTONIC, &kind, &timer), "timer_create");
	CHECK(!timer_settime(timer, 0, &often, NULL), "timer_settime");
	for (u32 i = 0; i < 20000 && ticks < 100; i++) {
		REGISTER(u64, EDU_DMA_DESTINATION) = i;
		CHECK(REGISTER(u64, EDU_DMA_DESTINATION) == i, "a store under signals");
	}
	CHECK(!timer_settime(timer, 0, &never, NULL), "timer_settime");
	timer_delete(timer);
	CHECK(ticks >= 3 && !wrong, "%d signals, %d saw another device", ticks, wrong);
	ok("handlers that access registers themselves");
}

static void note(int signal)
{
	(void)signal;
	ticks++;
}

static bool blocks_bus_errors(void)
{
	sigset_t now;

	CHECK(!pthread_sigmask(SIG_BLOCK, NULL, &now), "pthread_sigmask");
	return sigismember(&now, SIGBUS);
}

static void (*bus_handler(void))(int)
{
	struct sigaction now;

	CHECK(!sigaction(SIGBUS, NULL, &now), "sigaction");
	return now.sa_handler;
}

// A fault that the program blocks or ignores would end it, and leaves the default action and an open mask.
static void *unheard(void *argument)
{
	sigset_t all;

	sigfillset(&all);
	CHECK(!pthread_sigmask(SIG_SETMASK, &all, NULL), "pthread_sigmask");
	for (int i = 0; i < 3; i++) {
		CHECK(REGISTER(u32, EDU_ID) == 0x010000ed, "identification with all signals blocked");
		CHECK(blocks_bus_errors(), "a mask that was opened");
		CHECK((void *)bus_handler() == argument, "an action that was reset");
	}
	return NULL;
}

static void in_thread(void *(*body)(void *), void *argument)
{
	pthread_t thread;

	CHECK(!pthread_create(&thread, NULL, body, argument), "pthread_create");
	CHECK(!pthread_join(thread, NULL), "pthread_join");
}

static void in_handler(int signal)
{
	(void)signal;
	CHECK(REGISTER(u32, EDU_ID) == 0x010000ed, "identification in a handler");
	CHECK(blocks_bus_errors() && bus_handler() == note, "what a handler blocks and the program does");
	ticks++;
}

static void ignoring(void *argument)
{
	(void)argument;
	CHECK(bus_handler() == SIG_IGN, "a child that ignores no more");
	CHECK(REGISTER(u32, EDU_ID) == 0x010000ed, "identification in a child");
	CHECK(bus_handler() == SIG_IGN, "a child that ignores no more after an access");
	raise(SIGBUS);
	// A program that is executed ignores it too: SigIgn, bit 6.
	CHECK(!system("grep -q '^SigIgn:.*[4-7c-f][0-9a-f]$' /proc/self/status"), "a program that does not ignore it");
}

static void unheard_signals(void)
{
	struct sigaction action = { .sa_handler = in_handler };

	in_thread(unheard, SIG_DFL);
	CHECK(!blocks_bus_errors(), "another thread's mask");
	signal(SIGBUS, SIG_IGN);
	for (int i = 0; i < 3; i++) {
		CHECK(REGISTER(u32, EDU_ID) == 0x010000ed, "identification with SIGBUS ignored");
		CHECK(bus_handler() == SIG_IGN && !blocks_bus_errors(), "what is ignored");
	}
	raise(SIGBUS);
	in_thread(unheard, SIG_IGN);
	in_child(ignoring, NULL);
	ok("threads that block SIGBUS and programs that ignore it");

	signal(SIGBUS, note);
	CHECK(REGISTER(u32, EDU_ID) == 0x010000ed && bus_handler() == note, "a handler");
	in_thread(unheard, note);
	sigfillset(&action.sa_mask);
	CHECK(!sigaction(SIGUSR1, &action, NULL), "sigaction");
	ticks = 0;
	raise(SIGUSR1);
	CHECK(ticks == 1 && !blocks_bus_errors(), "a handler that blocks all");
	raise(SIGBUS);
	CHECK(ticks == 2, "the program's own handler is not called");
	signal(SIGBUS, SIG_DFL);
	signal(SIGUSR1, SIG_DFL);
	CHECK(REGISTER(u32, EDU_ID) == 0x010000ed && bus_handler() == SIG_DFL, "the default action");
	ok("programs with a handler for SIGBUS");
}

// ptrace is taken: who asks for it is refused, and told why.
static void debuggers(void)
{
	int child = fork(), status;

	if (!child)
		_exit(ptrace(PTRACE_TRACEME, 0, 0, 0) == -1 && errno == EPERM ? 7 : 8);
	status = wait_status(child);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7, "ptrace: %#x", status);
	ok("a program that is debugged");
}

static sigjmp_buf back;
static volatile u64 fault_address;

static void own_fault(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	fault_address = (u64)info->si_addr;
	siglongjmp(back, 1);
}

// A program's own SIGBUS: a file that ends before its mapping.
static void own_faults(const struct session *s)
{
	struct sigaction action = { .sa_sigaction = own_fault, .sa_flags = SA_SIGINFO }, now;
	int file = memfd_create("short", MFD_CLOEXEC);
	volatile u8 *memory = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, file, 0);

	CHECK(memory != MAP_FAILED, "mmap of an empty file");
	CHECK(!sigaction(SIGBUS, &action, NULL), "sigaction");
	for (int i = 0; i < 3; i++) {
		if (!sigsetjmp(back, 1)) {
			(void)memory[8 * i];
			CHECK(false, "no SIGBUS");
		}
		CHECK(fault_address == (u64)(memory + 8 * i), "SIGBUS at %#lx", fault_address);
		CHECK(REGISTER(u32, EDU_ID) == 0x010000ed, "identification after a SIGBUS");
	}
	// The device's memory does not answer: that is the program's to know.
	set_command(s, 0);
	fault_address = 0;
	if (!sigsetjmp(back, 1)) {
		(void)REGISTER(u32, EDU_ID);
		CHECK(false, "memory answers while it is disabled");
	}
	CHECK(fault_address == (u64)(registers + EDU_ID), "SIGBUS at %#lx", fault_address);
	set_command(s, 0x6);
	CHECK(!sigaction(SIGBUS, NULL, &now) && now.sa_sigaction == own_fault, "the handler is another one");
	CHECK(REGISTER(u32, EDU_ID) == 0x010000ed, "identification while memory is enabled");
	// The other operand is no memory at all.
	CHECK(!sigaction(SIGSEGV, &action, NULL), "sigaction");
	if (!sigsetjmp(back, 1)) {
		void *to = (void *)0x1000, *from = (void *)registers;

		ASM_MEMORY("movsl", "+D"(to), "+S"(from) :);
		CHECK(false, "no SIGSEGV");
	}
	CHECK(fault_address == 0x1000, "SIGSEGV at %#lx", fault_address);
	signal(SIGBUS, SIG_DFL);
	signal(SIGSEGV, SIG_DFL);
	munmap((void *)memory, PAGE);
	close(file);
	ok("SIGBUS of the program's own");
}

static void with_the_x87(void)
{
	ASM_MEMORY("fildl %0; fstp %%st(0)", : "m"(REGISTER(u32, EDU_LIVENESS)));
}

static void gather(void)
{
	ASM_MEMORY("vpcmpeqd %%xmm1, %%xmm1, %%xmm1; vpxor %%xmm2, %%xmm2, %%xmm2; vpgatherdd %%xmm1, (%0,%%xmm2), %%xmm3",
		: "r"(registers));
}

// Ends its program, with a message that whoever runs this finds in the log.
static void unknown(void (*instruction)(void))
{
	int child = fork(), status;

	if (!child) {
		instruction();
		_exit(0);
	}
	status = wait_status(child);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "an unknown instruction: %#x", status);
	ok("an unknown instruction ends its program");
}

static void controller(void)
{
	struct session s = open_legacy(find_nvme(), VFIO_TYPE1v2_IOMMU);
	volatile u8 *edu = registers;
	u64 size;

	registers = bar(&s, VFIO_PCI_BAR0_REGION_INDEX, &size);
	CHECK(REGISTER(u64, 0) & 1ul << 37, "the NVM command set is not offered");
	REGISTER(u32, 0x14) = 0;
	while (REGISTER(u32, 0x1c) & 1)
		;
	REGISTER(u32, 0x24) = 15 << 16 | 15;
	REGISTER(u64, 0x28) = IOVA;
	CHECK(REGISTER(u32, 0x24) == (15 << 16 | 15) && REGISTER(u64, 0x28) == IOVA, "nvme's registers");
	munmap((void *)registers, size);
	registers = edu;
	close_session(&s);
	ok("nvme");
}

// How long an access takes, for whoever reads the log.
static void measure(const struct session *s)
{
	struct timespec start, middle, end;
	enum { TIMES = 20000 };

	clock_gettime(CLOCK_MONOTONIC, &start);
	for (int i = 0; i < TIMES; i++)
		(void)REGISTER(u32, EDU_ID);
	clock_gettime(CLOCK_MONOTONIC, &middle);
	for (int i = 0; i < TIMES; i++)
		(void)read32(s, EDU_ID);
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%.2f us by mapping, %.2f us by pread\n",
		((middle.tv_sec - start.tv_sec) * 1e9 + middle.tv_nsec - start.tv_nsec) / TIMES / 1e3,
		((end.tv_sec - middle.tv_sec) * 1e9 + end.tv_nsec - middle.tv_nsec) / TIMES / 1e3);
}

void mapped(void)
{
	struct session s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);
	u64 size;

	registers = bar(&s, VFIO_PCI_BAR0_REGION_INDEX, &size);
	plain(&s);
	odd();
	vectors();
	strings();
	page_ends();
	rare();
	factorials(&s);
	transfers(&s);
	threads();
	forks();
	signals();
	unheard_signals();
	debuggers();
	own_faults(&s);
	unknown(with_the_x87);
	if (__builtin_cpu_supports("avx2"))
		unknown(gather);
	controller();
	measure(&s);
	munmap((void *)registers, size);
	close_session(&s);
}
