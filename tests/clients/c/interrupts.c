// INTx with its masks, MSI, and the signals a program sends to itself.
#include "client.h"

#define INTX VFIO_PCI_INTX_IRQ_INDEX
#define MSI VFIO_PCI_MSI_IRQ_INDEX
#define TRIGGER VFIO_IRQ_SET_ACTION_TRIGGER
#define MASK VFIO_IRQ_SET_ACTION_MASK
#define UNMASK VFIO_IRQ_SET_ACTION_UNMASK

// How long an interrupt may take, and how long none is waited for.
#define SOON 2000
#define NEVER 100

static void information(const struct session *s)
{
	struct vfio_irq_info info = { .argsz = sizeof(info), .index = INTX };

	WORKS(ioctl(s->device, VFIO_DEVICE_GET_IRQ_INFO, &info));
	CHECK(info.count == 1, "%u INTx", info.count);
	CHECK(info.flags == (VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED),
		"INTx flags %#x", info.flags);
	info = (struct vfio_irq_info){ .argsz = sizeof(info), .index = MSI };
	WORKS(ioctl(s->device, VFIO_DEVICE_GET_IRQ_INFO, &info));
	CHECK(info.count == 1, "%u MSI", info.count);
	CHECK(info.flags & VFIO_IRQ_INFO_EVENTFD && info.flags & VFIO_IRQ_INFO_NORESIZE,
		"MSI flags %#x", info.flags);
	info = (struct vfio_irq_info){ .argsz = sizeof(info), .index = VFIO_PCI_MSIX_IRQ_INDEX };
	WORKS(ioctl(s->device, VFIO_DEVICE_GET_IRQ_INFO, &info));
	CHECK(info.count == 0, "%u MSI-X", info.count);
	info = (struct vfio_irq_info){ .argsz = sizeof(info), .index = 5 };
	REFUSED(EINVAL, ioctl(s->device, VFIO_DEVICE_GET_IRQ_INFO, &info));
	ok("interrupt information");
}

static int trigger_bool(int device, u32 index, u8 value)
{
	struct {
		struct vfio_irq_set set;
		u8 value;
	} request = {
		.set = {
			.argsz = sizeof(request.set) + 1,
			.flags = VFIO_IRQ_SET_DATA_BOOL | TRIGGER,
			.index = index,
			.count = 1,
		},
		.value = value,
	};

	return ioctl(device, VFIO_DEVICE_SET_IRQS, &request);
}

static void messages(const struct session *s)
{
	int fd = event();

	WORKS(set_event(s->device, MSI, TRIGGER, fd));
	WORKS(set_none(s->device, MSI, TRIGGER, 1));
	CHECK(events(fd, SOON) == 1, "the loopback trigger");
	WORKS(trigger_bool(s->device, MSI, 0));
	CHECK(events(fd, NEVER) == 0, "a loopback trigger of false");
	WORKS(trigger_bool(s->device, MSI, 1));
	CHECK(events(fd, SOON) == 1, "a loopback trigger of true");
	ok("loopback triggers");

	write32(s, EDU_IRQ_RAISE, 0x55);
	CHECK(events(fd, SOON) == 1, "MSI");
	CHECK(read32(s, EDU_IRQ_STATUS) == 0x55, "edu's interrupt status is %#x", read32(s, EDU_IRQ_STATUS));
	write32(s, EDU_IRQ_ACK, 0x55);
	CHECK(read32(s, EDU_IRQ_STATUS) == 0, "edu's interrupt status after the acknowledgement");
	for (int i = 0; i < 100; i++) {
		write32(s, EDU_IRQ_RAISE, 1);
		CHECK(events(fd, SOON) == 1, "MSI %d", i);
		write32(s, EDU_IRQ_ACK, 1);
	}
	ok("MSI arrives each time");

	REFUSED(ENOTTY, set_none(s->device, MSI, MASK, 1));
	REFUSED(EINVAL, set_none(s->device, MSI, TRIGGER, 2));
	REFUSED(EINVAL, set_event(s->device, INTX, TRIGGER, fd));
	WORKS(set_none(s->device, MSI, TRIGGER, 0));
	write32(s, EDU_IRQ_RAISE, 1);
	CHECK(events(fd, NEVER) == 0, "MSI after it was disabled");
	write32(s, EDU_IRQ_ACK, 1);
	close(fd);
	ok("MSI is disabled");
}

static void lines(const struct session *s)
{
	int fd = event(), resample = event();
	u64 one = 1;

	WORKS(set_event(s->device, INTX, TRIGGER, fd));
	write32(s, EDU_IRQ_RAISE, 1);
	CHECK(events(fd, SOON) == 1, "INTx");
	write32(s, EDU_IRQ_RAISE, 2);
	CHECK(events(fd, NEVER) == 0, "INTx while it masked itself");
	WORKS(set_none(s->device, INTX, UNMASK, 1));
	CHECK(events(fd, SOON) == 1, "INTx that is still raised when it is unmasked");
	write32(s, EDU_IRQ_ACK, 3);
	WORKS(set_none(s->device, INTX, UNMASK, 1));
	CHECK(events(fd, NEVER) == 0, "INTx that is acknowledged when it is unmasked");
	ok("INTx masks itself");

	WORKS(set_none(s->device, INTX, MASK, 1));
	write32(s, EDU_IRQ_RAISE, 1);
	CHECK(events(fd, NEVER) == 0, "INTx while it is masked");
	WORKS(set_none(s->device, INTX, UNMASK, 1));
	CHECK(events(fd, SOON) == 1, "INTx after it was unmasked");
	ok("INTx is masked and unmasked");

	WORKS(set_event(s->device, INTX, UNMASK, resample));
	CHECK(write(resample, &one, sizeof(one)) == sizeof(one), "write of an eventfd");
	CHECK(events(fd, SOON) == 1, "INTx after an eventfd unmasked it");
	write32(s, EDU_IRQ_ACK, 1);
	ok("INTx is unmasked by an eventfd");

	WORKS(set_none(s->device, INTX, TRIGGER, 0));
	write32(s, EDU_IRQ_RAISE, 1);
	CHECK(events(fd, NEVER) == 0, "INTx after it was disabled");
	write32(s, EDU_IRQ_ACK, 1);
	close(fd);
	close(resample);
	ok("INTx is disabled");
}

static void refusals(const struct session *s)
{
	struct vfio_irq_set set = { .argsz = sizeof(set), .index = 5, .count = 1,
		.flags = VFIO_IRQ_SET_DATA_NONE | TRIGGER };

	REFUSED(EINVAL, ioctl(s->device, VFIO_DEVICE_SET_IRQS, &set));
	set.index = MSI;
	set.flags = VFIO_IRQ_SET_DATA_NONE | TRIGGER | MASK;
	REFUSED(ENOTTY, ioctl(s->device, VFIO_DEVICE_SET_IRQS, &set));
	set.flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_DATA_BOOL | TRIGGER;
	REFUSED(EINVAL, ioctl(s->device, VFIO_DEVICE_SET_IRQS, &set));
	set.flags = VFIO_IRQ_SET_DATA_EVENTFD | TRIGGER;
	REFUSED(EINVAL, ioctl(s->device, VFIO_DEVICE_SET_IRQS, &set));
	REFUSED(EBADF, set_event(s->device, MSI, TRIGGER, 9999));
	REFUSED(EINVAL, set_event(s->device, MSI, TRIGGER, s->container));
	ok("wrong requests are refused");
}

void interrupts(void)
{
	struct session s = open_legacy(find_edu(), VFIO_TYPE1v2_IOMMU);

	information(&s);
	messages(&s);
	lines(&s);
	messages(&s);
	refusals(&s);
	close_session(&s);
}
