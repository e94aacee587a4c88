/* Takes more of everything than a program may: `storm KIND`. Storms go on until they are ended; floods say what stopped them.
 * The same in C what flood.py does in Python, where the kind of program could matter; and what disturbs those beside it. */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BIG = 16 << 20, PAGE = 4096 };

__attribute__((noreturn)) static void stopped_by(const char *what)
{
    printf("%s\n", what);
    exit(0);
}

__attribute__((noreturn)) static void stopped(void)
{
    stopped_by(strerrorname_np(errno));
}

__attribute__((noreturn)) static void made(long count)
{
    printf("%ld ", count);
    stopped();
}

/* For who is killed: how many there have been, each time they doubled. */
static void tell(long count, const char *what)
{
    if (count & (count - 1))
        return;
    printf("%ld %s\n", count, what);
    fflush(stdout);
}

/* --- storms: they never end by themselves ------------------------------------------------------------------------------ */

static void spin(void) {}

static void sync_all(void) { sync(); }

static void sync_file(void)
{
    static int fd = -1;
    if (fd < 0 && (fd = open("written", O_WRONLY | O_CREAT, 0600)) < 0)
        stopped();
    if (pwrite(fd, "x", 1, 0) != 1 || fsync(fd) < 0)
        stopped();
}

static void copy(void)
{
    static char *from, *to;
    if (!from && (!(from = malloc(BIG)) || !(to = malloc(BIG))))
        stopped();
    memcpy(to, from, BIG);
    from[to[0] & 63]++;
}

static void barrier(void) { syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0); }

static void map(void)
{
    char *place = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (place == MAP_FAILED)
        stopped();
    for (int page = 0; page < 64; page++)
        place[page * PAGE] = 1;
    munmap(place, 64 * PAGE);
}

static void wake(void)
{
    static int word;
    syscall(SYS_futex, &word, FUTEX_WAKE, 1000, NULL, NULL, 0);
}

static void churn(void)
{
    static long children;
    pid_t child = fork();
    if (child == 0)
        _exit(0);
    if (child < 0)
        stopped();
    waitpid(child, NULL, 0);
    tell(++children, "churned");
}

/* Two sockets in flight in each other's queues: only the kernel's collector ever frees them, in a thread of its own. */
static void unix_gc(void)
{
    int pair[2];
    char room[CMSG_SPACE(sizeof pair)] = {0};
    struct iovec byte = {"x", 1};
    struct msghdr message = {.msg_iov = &byte, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    *rights = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof pair)};
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) < 0)
        stopped();
    memcpy(CMSG_DATA(rights), pair, sizeof pair);
    static long pairs;
    if (sendmsg(pair[0], &message, 0) >= 0 && sendmsg(pair[1], &message, 0) >= 0)
        tell(++pairs, "dropped");
    else if (errno != ETOOMANYREFS) /* until the collector is through */
        stopped();
    close(pair[0]);
    close(pair[1]);
}

/* --- floods ------------------------------------------------------------------------------------------------------------- */

/* Stays with all that it has, until the wall limit. */
__attribute__((noreturn)) static void refused_after(long made)
{
    printf("%ld %s\n", made, strerrorname_np(errno));
    fflush(stdout);
    for (;;)
        pause();
}

static void forks(void)
{
    pid_t first = getpid();
    long *made = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED)
        stopped();
    for (;;) {
        pid_t child = fork();
        if (child == 0)
            __atomic_add_fetch(made, 1, __ATOMIC_SEQ_CST);
        if (child < 0 && getpid() == first) {
            int refused = errno;
            usleep(50000); /* each counts itself, once it runs */
            errno = refused;
            refused_after(*made);
        }
        if (child < 0)
            pause();
    }
}

static void zombies(void)
{
    for (long made = 0;; made++) {
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        if (child < 0)
            refused_after(made);
    }
}

static void *wait_for_ever(void *nothing)
{
    pause();
    return nothing;
}

static void threads(void)
{
    for (long made = 0;; made++) {
        pthread_t thread;
        if ((errno = pthread_create(&thread, NULL, wait_for_ever, NULL)))
            refused_after(made);
    }
}

static int only_wait(void *nothing)
{
    return wait_for_ever(nothing) != NULL;
}

/* Processes that share one memory, each on a stack of its own. */
static void tasks(void)
{
    for (long made = 0;; made++) {
        char *stack = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stack == MAP_FAILED || clone(only_wait, stack + 16 * PAGE, CLONE_VM | CLONE_FS | CLONE_FILES | SIGCHLD, NULL) < 0)
            refused_after(made);
    }
}

static void daemons(void)
{
    for (int number = 0; number < 10; number++)
        if (fork() == 0) {
            setsid();
            if (fork() > 0)
                _exit(0);
            for (int signal_number = 1; signal_number < NSIG; signal_number++)
                signal(signal_number, SIG_IGN);
            for (int fd = 0; fd < 3; fd++)
                close(fd);
            for (;;)
                pause();
        }
    while (wait(NULL) > 0)
        ;
    stopped_by("10 daemons");
}

static void bite(int flags)
{
    char *place = mmap(NULL, BIG, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
    if (place == MAP_FAILED)
        stopped();
    memset(place, 1, BIG);
}

static void eat(int flags)
{
    for (;;)
        bite(flags);
}

static int deeper(long depth)
{
    volatile char frame[16 * PAGE];
    for (size_t at = 0; at < sizeof frame; at += PAGE)
        frame[at] = 1;
    return depth == 1 << 20 ? 0 : deeper(depth + 1) + frame[depth % (long)sizeof frame];
}

static void stack(void) { exit(deeper(0)); }

static void child_eats(void)
{
    if (fork() == 0)
        eat(MAP_PRIVATE);
    wait(NULL);
    stopped_by("held"); /* it ends well, and its child did not */
}

static void output(int fd)
{
    static char page[PAGE];
    memset(page, 'x', sizeof page);
    while (write(fd, page, sizeof page) > 0)
        ;
    stopped();
}

static void names(void)
{
    char name[32];
    for (long number = 0;; number++) {
        snprintf(name, sizeof name, "name-%ld", number);
        int fd = open(name, O_WRONLY | O_CREAT, 0600);
        if (fd < 0)
            made(number);
        close(fd);
    }
}

static void disk(void)
{
    static char page[PAGE];
    int fd = open("disk", O_WRONLY | O_CREAT, 0600);
    long pages = 0;
    while (write(fd, page, sizeof page) > 0)
        pages++;
    made(pages);
}

static void crash(void)
{
    for (int bites = 0; bites < 6; bites++)
        bite(MAP_PRIVATE);
    raise(SIGSEGV);
}

int main(int argc, char **argv)
{
    static const struct { const char *name; void (*turn)(void); } storms[] = {
        {"spin", spin}, {"sync", sync_all}, {"fsync", sync_file}, {"memcpy", copy}, {"membarrier", barrier},
        {"mappings", map}, {"futex", wake}, {"churn", churn}, {"unix-gc", unix_gc},
    };
    static const struct { const char *name; void (*flood)(void); } floods[] = {
        {"forks", forks}, {"zombies", zombies}, {"threads", threads}, {"tasks", tasks}, {"daemons", daemons},
        {"stack", stack}, {"child-eats", child_eats}, {"names", names}, {"disk", disk}, {"crash", crash},
    };
    if (argc != 2)
        return 2;
    for (size_t i = 0; i < sizeof storms / sizeof *storms; i++)
        if (!strcmp(argv[1], storms[i].name))
            for (;;)
                storms[i].turn();
    for (size_t i = 0; i < sizeof floods / sizeof *floods; i++)
        if (!strcmp(argv[1], floods[i].name))
            floods[i].flood();
    if (!strcmp(argv[1], "memory"))
        eat(MAP_PRIVATE);
    if (!strcmp(argv[1], "shared-memory"))
        eat(MAP_SHARED);
    if (!strcmp(argv[1], "stdout"))
        output(1);
    if (!strcmp(argv[1], "stderr"))
        output(2);
    return 2;
}
