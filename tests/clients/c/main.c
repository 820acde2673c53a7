// Picks what to do: a group of checks, or one of the roles that the exit-status cases need.
#include "client.h"

#include <signal.h>
#include <time.h>

static volatile sig_atomic_t interrupts_seen;

static void count_interrupt(int signal)
{
	(void)signal;
	interrupts_seen++;
}

// One DMA that must be refused; the program itself ends with the status it was told.
static void fault(void)
{
	struct session s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);

	WORKS(map(s.container, IOVA, anonymous(PAGE), PAGE, RW));
	edu_dma(&s, IOVA + 0x200000, 0, 64, FROM_EDU);
	ok("fault");
}

// The status is how many SIGINT arrived.
static int count_interrupts(void)
{
	struct timespec rest = { .tv_sec = 10 };

	signal(SIGINT, count_interrupt);
	printf("ready\n");
	nanosleep(&rest, NULL);
	rest = (struct timespec){ .tv_nsec = 500000000 };
	while (nanosleep(&rest, &rest))
		;
	return interrupts_seen;
}

// Holds an open device and a mapping until it is killed.
static void hold(void)
{
	struct session s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);

	WORKS(map(s.container, IOVA, anonymous(PAGE), PAGE, RW));
	printf("ready %d \n", getpid());
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} groups[] = {
		{ "legacy", legacy }, { "interrupts", interrupts }, { "dma", dma },
		{ "rules", rules }, { "nvme", nvme }, { "lifecycle", lifecycle },
		{ "iommufd", iommufd }, { "hostile", hostile }, { "closed", closed }, { "kvm", kvm },
		{ "mapped", mapped }, { "mediated", mediated }, { "buffer", memory_buffer },
		{ "tracking", tracking }, { "pasid", pasid }, { "physical", physical },
		{ "frames", frames }, { "virtual-functions", virtual_functions },
		{ "migration", migration }, { "assigned", assigned },
		{ "assigned-remote", assigned_remote },
		{ "fault", fault }, { "hold", hold },
	};
	const char *name = argc > 1 ? argv[1] : "";

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!strcmp(name, "count-interrupts"))
		return count_interrupts();
	if (!strcmp(name, "executed") && argc > 3) {
		executed(atoi(argv[2]), atoi(argv[3]));
		return 0;
	}
	if (!strcmp(name, "mode") && argc > 2) {
		in_mode(argv[2]);
		printf("done\n");
		return 0;
	}
	for (size_t i = 0; i < COUNT(groups); i++) {
		if (!strcmp(name, groups[i].name)) {
			groups[i].run();
			printf("done\n");
			return argc > 2 ? atoi(argv[2]) : 0;
		}
	}
	fprintf(stderr, "usage: %s legacy|interrupts|dma|rules|nvme|lifecycle|iommufd|hostile|closed|kvm|mapped|buffer|mediated|"
		"tracking|pasid|physical|frames|virtual-functions|assigned\n"
		"       %s mode type1|type1v2|compat-group|compat-cdev|iommufd\n",
		argv[0], argv[0]);
	return 2;
}
