/* Leaves 41 daemons behind: each forked twice, in a session of its own, asleep for ever. Prints the time of its own end, in
 * nanoseconds of CLOCK_REALTIME (the monotonic clock is another inside a time namespace), once all of them are there. */
#include <stdio.h>
#include <time.h>
#include <unistd.h>
#include <sys/wait.h>

enum { DAEMONS = 41 };

int main(void) {
    int there[2];
    char byte = 0;
    if (pipe(there))
        return 1;
    for (int i = 0; i < DAEMONS; i++) {
        pid_t child = fork();
        if (child < 0)
            return 2;
        if (child == 0) {
            setsid();
            if (fork() == 0) {
                if (write(there[1], &byte, 1) != 1)
                    _exit(3);
                for (;;)
                    pause();
            }
            _exit(0);
        }
        waitpid(child, NULL, 0);
    }
    for (int i = 0; i < DAEMONS; i++)
        if (read(there[0], &byte, 1) != 1)
            return 4;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    printf("%d %lld\n", DAEMONS, now.tv_sec * 1000000000LL + now.tv_nsec);
    fflush(stdout);
    _exit(0);
}
