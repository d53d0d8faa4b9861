/* Memory at addresses that somebody else gave us: touched by the kernel on our behalf, so that an address where nothing is
 * mapped is an error and not a fault.
 *
 * All functions return the number of bytes moved, at least 1, or -errno: -EFAULT when some address is not mapped (or not
 * writable), -EPERM or -ENOSYS when the kernel forbids the way, -ESRCH when the process has gone.
 */
#ifndef LLMDD_PROCESS_MEMORY_H
#define LLMDD_PROCESS_MEMORY_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

/* From a process's memory (`there`) to ours (`here`). */
static inline int64_t process_memory_read(int pid, const struct iovec *here, const struct iovec *there, unsigned long count) {
    ssize_t moved = process_vm_readv(pid, here, count, there, count, 0);
    return moved > 0 ? moved : moved == 0 ? -EFAULT : -errno;
}

/* From our memory to a process's. */
static inline int64_t process_memory_write(int pid, const struct iovec *here, const struct iovec *there, unsigned long count) {
    ssize_t moved = process_vm_writev(pid, here, count, there, count, 0);
    return moved > 0 ? moved : moved == 0 ? -EFAULT : -errno;
}

/* Within our own memory, where the kernel forbids even that to the two above (some sandboxes do): through a pipe, whose
 * ends must be non-blocking and empty. */
static inline int64_t process_memory_pipe(const int ends[2], char *target, const char *source, uint64_t size) {
    ssize_t taken = write(ends[1], source, size < 65536 ? size : 65536);
    if (taken <= 0)
        return taken == 0 ? -EFAULT : -errno;
    for (ssize_t given = 0; given < taken;) {
        ssize_t part = read(ends[0], target + given, taken - given);
        if (part <= 0)
            return part == 0 ? -EFAULT : -errno;
        given += part;
    }
    return taken;
}

static inline int process_memory_open_pipe(int ends[2]) { return pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0 ? 0 : -errno; }

static inline void process_memory_close_pipe(const int ends[2]) {
    close(ends[0]);
    close(ends[1]);
}

/* Whether the process behind a pidfd still runs. Its number may be another's as soon as it does not. */
static inline int process_is_alive(int pidfd) {
    struct pollfd watched = {pidfd, POLLIN, 0};
    return poll(&watched, 1, 0) == 0;
}

/* Whether something is mapped at every address of a range of ours; whether it may be read is not asked. */
static inline int memory_is_mapped(uint64_t address, uint64_t size) {
    unsigned char resident[4096];
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t end = address + size;
    if (end < address || end > UINT64_MAX - page)
        return 0;
    address -= address % page;
    end = (end + page - 1) / page * page;
    while (address < end) {
        uint64_t part = end - address < sizeof(resident) * page ? end - address : sizeof(resident) * page;
        if (mincore((void *)address, part, resident) != 0 && errno != EAGAIN)
            return 0;
        address += part;
    }
    return 1;
}

#endif
