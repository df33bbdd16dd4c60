/* Reads or writes a block device past the page cache with so many requests under way, as `rbd bench` does an image:
 * each of them on a part of its own, in order or at random. Prints seconds and requests.
 *
 *   guest_io DEVICE read|write seq|rand BYTES_PER_REQUEST DEPTH REQUESTS SPAN
 *
 * Linux's own asynchronous I/O, by system call, so that it can be linked without a library into a guest without any.
 * Writing begins and ends with a flush; both are in the time, as they are in `rbd bench`. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    if (argc != 8) {
        fprintf(stderr, "usage: guest_io DEVICE read|write seq|rand BYTES DEPTH REQUESTS SPAN\n");
        return 2;
    }
    int writing = !strcmp(argv[2], "write"), random_order = !strcmp(argv[3], "rand");
    size_t size = strtoull(argv[4], NULL, 0);
    int depth = atoi(argv[5]);
    long requests = atol(argv[6]);
    unsigned long long span = strtoull(argv[7], NULL, 0), blocks = span / size;
    int device = open(argv[1], (writing ? O_RDWR : O_RDONLY) | O_DIRECT);
    if (device < 0) die(argv[1]);
    if (blocks < (unsigned)depth) { fprintf(stderr, "SPAN is too small\n"); return 2; }
    aio_context_t context = 0;
    if (syscall(SYS_io_setup, depth, &context)) die("io_setup");
    char *memory = mmap(NULL, size * depth, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) die("mmap");
    memset(memory, 0x5c, size * depth);
    struct iocb *control = calloc(depth, sizeof *control);
    unsigned long long *next = calloc(depth, sizeof *next);
    struct io_event *events = calloc(depth, sizeof *events);
    unsigned long long seed = 88172645463325252ULL, share = blocks / depth;
    for (int slot = 0; slot < depth; slot++) next[slot] = slot * share;

    double began = now();
    if (writing && fsync(device)) die("fsync");
    long started = 0, ended = 0;
    for (int slot = -1; ended < requests;) {
        struct iocb *batch[depth];
        int count = 0;
        if (slot < 0)
            for (slot = 0; slot < depth; slot++) events[slot].data = slot;
        for (int index = 0; index < slot && started < requests; index++, started++) {
            int mine = (int)events[index].data;
            unsigned long long block = next[mine];
            if (random_order) {
                seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
                block = seed % blocks;
            } else {
                next[mine] = next[mine] + 1 < (mine + 1) * share ? next[mine] + 1 : mine * share;
            }
            struct iocb *one = &control[mine];
            memset(one, 0, sizeof *one);
            one->aio_data = mine;
            one->aio_lio_opcode = writing ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
            one->aio_fildes = device;
            one->aio_buf = (unsigned long)(memory + (size_t)mine * size);
            one->aio_nbytes = size;
            one->aio_offset = (long long)(block * size);
            batch[count++] = one;
        }
        for (int sent = 0; sent < count;) {
            long taken = syscall(SYS_io_submit, context, count - sent, batch + sent);
            if (taken <= 0) die("io_submit");
            sent += (int)taken;
        }
        long got = syscall(SYS_io_getevents, context, 1, depth, events, NULL);
        if (got <= 0) die("io_getevents");
        for (int index = 0; index < got; index++)
            if (events[index].res != (long long)size) {
                errno = events[index].res < 0 ? (int)-events[index].res : EIO;
                die("request");
            }
        ended += got;
        slot = (int)got;
    }
    if (writing && fsync(device)) die("fsync");
    printf("%.6f %ld\n", now() - began, ended);
    return 0;
}
