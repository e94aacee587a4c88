/* Times itself: `inside spin N`, `inside getppid N`, `inside open N PATH`. Prints nanoseconds for one turn. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static double now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t); /* what others do on the machine meanwhile is not counted */
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc < 3)
        return 2;
    long turns = atol(argv[2]);
    volatile unsigned long state = 1;
    char buffer[4096];
    double begin = now_ns();
    for (long i = 0; i < turns; i++) {
        if (!strcmp(argv[1], "getppid")) {
            syscall(SYS_getppid);
        } else if (!strcmp(argv[1], "open")) {
            int fd = open(argv[3], O_RDONLY);
            if (fd < 0 || read(fd, buffer, sizeof buffer) < 0 || close(fd) < 0)
                return 1;
        } else {
            for (int k = 0; k < 1000; k++)
                state = state * 6364136223846793005ul + 1442695040888963407ul;
        }
    }
    printf("%.3f\n", (now_ns() - begin) / (double)turns);
    return 0;
}
