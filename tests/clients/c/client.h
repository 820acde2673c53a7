// A VFIO program on the raw uAPI, as a driver author would write one: what its files share.
// Every check prints "ok NAME"; the first that fails says why and ends the program with status 1.
#ifndef CLIENT_H
#define CLIENT_H

#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/vfio.h>

#include "iommufd_abi.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define PAGE 4096ul
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

// An IOVA that edu's 28 address bits reach.
#define IOVA 0x100000ul

void ok(const char *format, ...) __attribute__((format(printf, 1, 2)));
void fail(const char *file, int line, const char *format, ...)
	__attribute__((format(printf, 3, 4), noreturn));

#define CHECK(condition, ...) \
	do { \
		if (!(condition)) \
			fail(__FILE__, __LINE__, __VA_ARGS__); \
	} while (0)

// The call succeeds.
#define WORKS(call) CHECK((call) >= 0, "%s", #call)
// The call fails with this errno.
#define REFUSED(error, call) refused(__FILE__, __LINE__, #call, (errno = 0, (call)), error)
void refused(const char *file, int line, const char *call, long result, int error);

// A PCI function as sysfs shows it.
struct function {
	// Or the UUID of a mediated device.
	char address[40];
	u32 vendor, device, class;
	int group;
	char cdev[32];
};

struct function find_edu(void);
struct function find_nvme(void);
struct function function_at(const char *address);
// The first virtio-net functions in the order of their addresses; returns how many.
unsigned find_nics(struct function *functions, unsigned most);
// The same with edus.
unsigned find_edus(struct function *functions, unsigned most);

// An opened function: by group (container and group are set) or by cdev (iommufd and ioas are).
struct session {
	struct function function;
	int container, group, device;
	int iommufd;
	u32 ioas;
	u64 bar0, bar0_size, config;
};

// By what a program opens a device and maps memory.
enum mode {
	// Container and group, of either version.
	TYPE1,
	TYPE1V2,
	// The group in an iommufd, which takes the container's calls.
	COMPAT_GROUP,
	// The device's own node, and an iommufd that takes the container's calls for the device's address space.
	COMPAT_CDEV,
	// The device's own node, and iommufd's own calls.
	IOMMUFD,
};
// What open_legacy(…, VFIO_TYPE1v2_IOMMU), map and unmap do: TYPE1V2 unless told otherwise.
extern enum mode mode;

int open_group(const struct function *function);
int open_cdev(const struct function *function);
// Container, group and device in the usual order, memory and bus mastering enabled.
struct session open_legacy(struct function function, int iommu_type);
// cdev, bind, an IOAS, attach, memory and bus mastering enabled.
struct session open_iommufd(struct function function);
void close_session(struct session *session);
void read_layout(struct session *session);
void set_command(const struct session *session, u16 bits);

u32 read32(const struct session *session, u64 offset);
void write32(const struct session *session, u64 offset, u32 value);
void write64(const struct session *session, u64 offset, u64 value);

#define RW (VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE)
int map(int container, u64 iova, void *memory, u64 size, u32 flags);
// Returns the bytes that went, or -1.
long long unmap(int container, u64 iova, u64 size, u32 flags);
void *anonymous(size_t size);
// Shared file memory; the descriptor is stored if wanted.
void *file_memory(size_t size, int *descriptor);

int event(void);
// How often it was signalled since the last call; waits up to `milliseconds` for the first.
u64 events(int descriptor, int milliseconds);
// SET_IRQS with one descriptor.
int set_event(int device, u32 index, u32 action, int descriptor);
// SET_IRQS without data.
int set_none(int device, u32 index, u32 action, u32 count);

// Registers of edu.
enum {
	EDU_ID = 0x00,
	EDU_LIVENESS = 0x04,
	EDU_FACTORIAL = 0x08,
	EDU_STATUS = 0x20,
	EDU_IRQ_STATUS = 0x24,
	EDU_IRQ_RAISE = 0x60,
	EDU_IRQ_ACK = 0x64,
	EDU_DMA_SOURCE = 0x80,
	EDU_DMA_DESTINATION = 0x88,
	EDU_DMA_COUNT = 0x90,
	EDU_DMA_COMMAND = 0x98,
	EDU_BUFFER = 0x40000,
};
enum { TO_EDU = 0, FROM_EDU = 2, THEN_IRQ = 4 };

void check_liveness(const struct session *session);
// Starts a transfer between the buffer's byte `at` and memory, and waits until edu says it is over.
void edu_dma(const struct session *session, u64 iova, u32 at, u32 count, u32 command);
void fill(void *memory, size_t size, u32 seed);
// Whether memory holds what fill() would write.
bool holds(const void *memory, size_t size, u32 seed);
bool all_bytes(const void *memory, size_t size, u8 value);

// A virtio-net that was opened.
struct nic {
	struct session s;
	u64 bar;
	u8 *memory;
	// Signalled for what is received.
	int received;
	u16 seen;
};

void start_nic(struct nic *nic);
void send_frame(struct nic *nic, const void *frame, size_t size);
// Waits for the interrupt; returns the frame's size.
size_t receive_frame(struct nic *nic, void *frame, size_t size);
void frame_arrives(struct nic *from, struct nic *to, u32 seed);

// Runs in a child and expects it to end well.
void in_child(void (*body)(void *), void *argument);
// Waits for a child's wait status.
int wait_status(int child);
void send_descriptor(int socket, int descriptor);
int receive_descriptor(int socket);

// The groups that hold in every mode.
void in_mode(const char *name);

void legacy(void);
void interrupts(void);
void dma(void);
void rules(void);
void nvme(void);
void lifecycle(void);
void iommufd(void);
void hostile(void);
void closed(void);
void kvm(void);
void frames(void);
void virtual_functions(void);
void mapped(void);
void mediated(void);
void memory_buffer(void);
void tracking(void);
void pasid(void);
void physical(void);
void migration(void);
void assigned(void);
// The second edu is in another process than the unit.
void assigned_remote(void);
// What lifecycle() executes.
void executed(int device, int container);

#endif
