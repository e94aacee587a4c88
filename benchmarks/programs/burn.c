/* Uses CPU for ever, in the way that its argument names. */
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CHILDREN = 4, SHORT_NS = 20 * 1000 * 1000 };

static void burn(void) {
    for (;;)
        __asm__ volatile("");
}

static void burn_shortly(void) {
    struct timespec now;
    do
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    while (now.tv_sec == 0 && now.tv_nsec < SHORT_NS);
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "loop";
    if (!strcmp(mode, "forks")) {
        for (int i = 0; i < CHILDREN; i++)
            if (fork() == 0)
                burn();
        while (wait(NULL) > 0)
            ;
    } else if (!strcmp(mode, "double-forks")) {
        for (int i = 0; i < CHILDREN; i++)
            if (fork() == 0) {
                setsid();
                if (fork() == 0)
                    burn();
                _exit(0);
            }
        while (wait(NULL) > 0)
            ;
        for (;;)
            pause();
    } else if (!strcmp(mode, "sigchld-ignored")) {
        /* Children that nobody waits for: their time reaches no rusage. */
        signal(SIGCHLD, SIG_IGN);
        for (;;) {
            pid_t child = fork();
            if (child == 0) {
                burn_shortly();
                _exit(0);
            }
            if (child > 0)
                burn_shortly();
        }
    }
    burn();
}
