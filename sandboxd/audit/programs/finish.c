/* Ends in ways that need no interpreter, or that none would do: usage: finish HOW [NUMBER]. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int number;
static char **arguments;

static void stay(void)
{
    for (;;)
        pause();
}

static void by_signal(void) /* ignored first, then sent to one thread alone */
{
    signal(number, SIG_IGN);
    signal(number, SIG_DFL);
    syscall(SYS_tgkill, getpid(), gettid(), number);
    stay();
}

static void *exit_later(void *nothing)
{
    usleep(50000);
    syscall(SYS_exit_group, number);
    return nothing;
}

static void last_thread(void) /* the first one is gone before the process ends */
{
    pthread_t thread;
    pthread_create(&thread, NULL, exit_later, NULL);
    syscall(SYS_exit, 0);
}

static void *execute(void *nothing)
{
    execl("/proc/self/exe", "finish", "exit", arguments[2], NULL);
    return nothing;
}

static void other_thread(void) /* another thread becomes the process, in a new program */
{
    pthread_t thread;
    pthread_create(&thread, NULL, execute, NULL);
    stay();
}

static void at_once(void) { _exit(number); }

static void rest(void)
{
    usleep(number * 1000);
    _exit(0);
}

static void vfork_parent(void) /* waits where only a kill reaches it, for a child that never lets go */
{
    if (vfork() == 0)
        stay();
}

static void *burn(void *nothing)
{
    for (volatile long turn = 0;; turn++)
        ;
    return nothing;
}

static void burn_threads(void)
{
    pthread_t thread;
    for (int made = 0; made < 3; made++)
        pthread_create(&thread, NULL, burn, NULL);
    stay();
}

static void burn_kernel(void)
{
    for (;;)
        access("/box/none", F_OK);
}

static void burn_unwaited(void) /* children that vanish from getrusage(2) */
{
    signal(SIGCHLD, SIG_IGN);
    for (;;) {
        if (fork() == 0) {
            alarm(1);
            for (volatile long turn = 0; turn < 20000000; turn++)
                ;
            _exit(0);
        }
        usleep(20000);
    }
}

int main(int argc, char **argv)
{
    static const struct { const char *name; void (*end)(void); } ends[] = {
        {"signal", by_signal}, {"last-thread", last_thread}, {"other-thread", other_thread}, {"exit", at_once},
        {"rest", rest}, {"vfork-parent", vfork_parent}, {"burn-threads", burn_threads}, {"burn-kernel", burn_kernel}, {"burn-unwaited", burn_unwaited},
    };
    number = argc > 2 ? atoi(argv[2]) : 0;
    arguments = argv;
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (argc > 1 && !strcmp(argv[1], ends[i].name))
            ends[i].end();
    fprintf(stderr, "no such end\n");
    return 2;
}
