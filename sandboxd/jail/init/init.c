/* init: makes one sandbox, holds it together as its PID 1, and reports.
 *
 *   launcher ── posix_spawn ──> spawner ── clone3(CLONE_PARENT) ──> outer
 *                                          outer ── clone3(CLONE_PARENT | CLONE_INTO_CGROUP) ──> PID 1 ── fork ──> payload (PID 2)
 *
 * spawner lives as long as the launcher and forks an outer for each sandbox that it is asked for: no exec, and the launcher does not
 * wait. CLONE_PARENT makes both outer and PID 1 the launcher's own children.
 * outer is in the host's namespaces: it makes PID 1, puts it into the v1 cgroups, writes its id maps, hands its pidfd to the
 * launcher and exits. PID 1 executes the build list, forks the payload's process, gives up all rights, reaps, and reports the
 * main process's end. The payload's process gives up all rights and reports READY before it knows its job; it then receives
 * the job list, puts the job's files and limits in place, and executes its command. Until then it holds the control socket
 * beside PID 1; no program ever does.
 *
 * Nothing here decides: lists of fixed-size steps arrive in sealed memfds, made by the launcher (sandboxd/jail/plan.py).
 * Nothing here allocates. A failing step is reported with its index and errno, and is the end.
 */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { EXIT_BROKEN = 70 }; /* EX_SOFTWARE: the launcher has been told why, if it can be told */
enum { REAPED_AFTER_MAIN = 64 }; /* orphans that keep ending must not delay the report of the main process's end */
enum { FIRST_FD = 3 };     /* the spawner: its one socket; a sandbox: after its standard three */

static uint64_t clock_ns(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* --- lists ------------------------------------------------------------------------------------------------------------ */

const char *text(const struct image *in, uint32_t offset)
{
    return offset ? in->base + offset : NULL;
}

/* Offsets are checked here, once; what they point at ends in the list's final NUL at the latest. */
static int map_list(int fd, struct image *out)
{
    off_t end = lseek(fd, 0, SEEK_END); /* not fstat(3): a job's filter would have to allow what it becomes in each libc */
    if (end < 0)
        return -1;
    errno = EINVAL;
    if (end < (off_t)sizeof(struct list) || end > (off_t)WIRE_BYTES_MAX)
        return -1;
    char *base = mmap(NULL, (size_t)end, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0); /* writes stay here */
    if (base == MAP_FAILED)
        return -1;
    const struct list *head = (const struct list *)base;
    uint64_t size = (uint64_t)end;
    errno = EINVAL;
    if (head->magic != WIRE_MAGIC || head->version != WIRE_VERSION || head->size != size || base[size - 1] != 0)
        return -1;
    uint64_t steps_end = sizeof *head + (uint64_t)head->steps * sizeof(struct step);
    if (head->steps > WIRE_STEPS_MAX || steps_end > size)
        return -1;
    const struct step *steps = (const struct step *)(base + sizeof *head);
    for (uint32_t i = 0; i < head->steps; i++) {
        if (steps[i].slot >= SLOT_COUNT)
            return -1;
        for (int k = 0; k < 4; k++)
            if (steps[i].str[k] >= size)
                return -1;
        if (steps[i].len && (uint64_t)steps[i].str[0] + steps[i].len > size)
            return -1;
    }
    uint32_t vectors[2][2] = {{head->argv, head->argc}, {head->envp, head->envc}};
    for (int v = 0; v < 2; v++) {
        if (vectors[v][0] % sizeof(uint64_t) || vectors[v][0] < steps_end) /* they are written to: see pointers() */
            return -1;
        if ((uint64_t)vectors[v][0] + ((uint64_t)vectors[v][1] + 1) * sizeof(uint64_t) > size)
            return -1;
    }
    *out = (struct image){.base = base, .head = head, .steps = steps};
    return 0;
}

/* An array of offsets, ended by 0, becomes an array of pointers. The mapping is private and only this process's. */
static char **pointers(const struct image *in, uint32_t offset, uint32_t count)
{
    uint64_t *at = (uint64_t *)(uintptr_t)(in->base + offset);
    for (uint32_t i = 0; i < count; i++) {
        if (at[i] >= in->head->size)
            return NULL;
        at[i] = (uint64_t)(uintptr_t)(in->base + at[i]);
    }
    at[count] = 0;
    return (char **)at;
}

/* --- reports ---------------------------------------------------------------------------------------------------------- */

int send_report(int socket, const struct report *report, int fd)
{
    struct iovec io = {(void *)(uintptr_t)report, sizeof *report};
    char room[CMSG_SPACE(sizeof fd)] = {0};
    struct msghdr message = {.msg_iov = &io, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = room;
        message.msg_controllen = sizeof room;
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        *c = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof fd)};
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    return sendmsg(socket, &message, MSG_NOSIGNAL) < 0 ? -1 : 0;
}

__attribute__((noreturn)) static void broken(struct sandbox *s, uint32_t phase, int error)
{
    struct report report = {.kind = REPORT_FAILED, .phase = phase, .step = s->at, .error = error};
    send_report(s->slot[SLOT_CONTROL], &report, -1);
    _exit(EXIT_BROKEN);
}

static int run_phase(struct sandbox *s, const struct image *in, uint32_t phase)
{
    for (s->at = 0; s->at < in->head->steps; s->at++)
        if (in->steps[s->at].phase == phase && execute(s, in, &in->steps[s->at]) < 0)
            return -1;
    return 0;
}

/* --- outer ------------------------------------------------------------------------------------------------------------ */

static void build_and_hold(struct sandbox *s, const struct image *build);
static struct image build_list;

int clone_init(struct sandbox *s, uint64_t flags)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return -1;
    struct clone_args args = {
        .flags = flags | CLONE_PIDFD | CLONE_PARENT | CLONE_INTO_CGROUP, /* CLONE_PARENT: exit_signal must be 0 */
        .pidfd = (uint64_t)(uintptr_t)&s->pidfd,
        .cgroup = (uint64_t)s->slot[SLOT_LEAF],
    };
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid < 0)
        return -1;
    if (pid == 0) {
        close(pair[0]);
        s->peer = pair[1];
        build_and_hold(s, &build_list);
        _exit(EXIT_BROKEN);
    }
    close(pair[1]);
    s->peer = pair[0];
    s->pid = (pid_t)pid;
    /* Before anything else can fail: without it the launcher would not hear of its end. */
    struct report report = {.kind = REPORT_PIDFD};
    return send_report(s->slot[SLOT_CONTROL], &report, s->pidfd);
}

int attach_cgroup(struct sandbox *s, int fd)
{
    char number[16];
    int len = snprintf(number, sizeof number, "%d", s->pid);
    return write(fd, number, (size_t)len) < 0 ? -1 : 0;
}

int write_id_map(struct sandbox *s, const char *name, const char *content)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", s->pid, name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    int result = write(fd, content, strlen(content)) < 0 ? -1 : 0;
    close(fd);
    return result;
}

/* The peer's end is a failure that it has reported already. */
int await_peer(struct sandbox *s)
{
    char byte;
    if (read(s->peer, &byte, 1) != 1)
        _exit(EXIT_BROKEN);
    return 0;
}

/* --- PID 1 ------------------------------------------------------------------------------------------------------------ */

/* The job: one message with its parts' descriptors. End of file: not needed any more. */
static int receive_job(struct sandbox *s, struct image *job)
{
    int fds[3], slots[] = {SLOT_BUILD, SLOT_INPUTS, SLOT_STDIN}; /* the job list comes where the build list was */
    unsigned char parts;
    char room[CMSG_SPACE(sizeof fds)];
    struct iovec io = {&parts, 1};
    struct msghdr message = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    ssize_t n = recvmsg(s->slot[SLOT_CONTROL], &message, MSG_CMSG_CLOEXEC);
    if (n == 0)
        _exit(0);
    if (n < 0)
        return -1;
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    size_t count = (size_t)__builtin_popcount(parts), next = 0;
    if (!c || c->cmsg_type != SCM_RIGHTS || !(parts & JOB_LIST) || parts > 7 || c->cmsg_len != CMSG_LEN(count * sizeof *fds))
        return errno = EBADMSG, -1;
    memcpy(fds, CMSG_DATA(c), count * sizeof *fds);
    for (int part = 0; part < 3; part++)
        s->slot[slots[part]] = parts & 1 << part ? fds[next++] : -1;
    return map_list(s->slot[SLOT_BUILD], job);
}

/* Every candidate that does not exist is passed over, as execvp(3) does; a refusal is remembered. */
static int exec_candidates(struct sandbox *s, const struct image *job, char **argv, char **envp)
{
    int error = ENOENT;
    for (s->at = 0; s->at < job->head->steps; s->at++) {
        if (job->steps[s->at].phase != PHASE_EXEC)
            continue;
        execve(text(job, job->steps[s->at].str[0]), argv, envp);
        if (errno == EACCES)
            error = EACCES;
        else if (errno != ENOENT && errno != ENOTDIR)
            return errno;
        else if (error != EACCES)
            error = errno;
    }
    return error;
}

/* Gives up its rights first, and learns its job then: what it does with a job's files is done as the job could do it. */
__attribute__((noreturn)) static void payload(struct sandbox *s, const struct image *build)
{
    struct image job;
    struct report ready = {.kind = REPORT_READY}, started = {.kind = REPORT_STARTED}, noexec = {.kind = REPORT_NOEXEC};

    if (run_phase(s, build, PHASE_PAYLOAD) < 0)
        broken(s, PHASE_PAYLOAD, errno);
    if (send_report(s->slot[SLOT_CONTROL], &ready, s->listener) < 0)
        _exit(EXIT_BROKEN);
    if (s->listener >= 0)
        close(s->listener);

    s->at = UINT32_MAX; /* no step of it failed: the list did */
    if (receive_job(s, &job) < 0)
        broken(s, PHASE_JOB, errno);
    char **argv = pointers(&job, job.head->argv, job.head->argc);
    char **envp = pointers(&job, job.head->envp, job.head->envc);
    if (!argv || !envp)
        broken(s, PHASE_JOB, EINVAL);
    if (run_phase(s, &job, PHASE_JOB) < 0)
        broken(s, PHASE_JOB, errno);
    started.exec_ns = clock_ns(CLOCK_MONOTONIC) + s->clock_offset_ns;
    started.payload_cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    if (send_report(s->slot[SLOT_CONTROL], &started, -1) < 0)
        _exit(EXIT_BROKEN);
    noexec.error = exec_candidates(s, &job, argv, envp);
    send_report(s->slot[SLOT_CONTROL], &noexec, -1);
    _exit(EXIT_BROKEN);
}

/* Reaps whatever ended. Returns 1 when the main process was among them. ECHILD afterwards means alone: an orphan is
 * re-parented to PID 1 before its parent can be reaped. */
static int reap(pid_t main_pid, struct report *report)
{
    int seen = 0, status;
    pid_t pid = 0;
    for (int after = 0; after < REAPED_AFTER_MAIN && (pid = waitpid(-1, &status, WNOHANG)) > 0; after += seen) {
        if (pid == main_pid) {
            seen = 1;
            report->status = (uint32_t)status;
            report->end_ns = clock_ns(CLOCK_MONOTONIC);
        }
    }
    report->alone = pid < 0 && errno == ECHILD;
    return seen;
}

/* Holds the namespaces until the launcher lets go: its end of the control socket is closed. What it sends is the payload's. */
static void hold(struct sandbox *s, pid_t main_pid, int children)
{
    struct pollfd wake[2] = {{.fd = s->slot[SLOT_CONTROL]}, {.fd = children, .events = POLLIN}};
    struct signalfd_siginfo info;
    struct report report = {.kind = REPORT_ENDED};
    int ended = 0;
    for (;;) {
        if (reap(main_pid, &report) && !ended) {
            ended = 1;
            report.init_cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
            send_report(s->slot[SLOT_CONTROL], &report, -1);
        }
        if (poll(wake, 2, -1) < 0)
            _exit(EXIT_BROKEN);
        if (wake[0].revents)
            _exit(0);
        if (wake[1].revents && read(children, &info, sizeof info) < 0)
            _exit(EXIT_BROKEN);
    }
}

static void build_and_hold(struct sandbox *s, const struct image *build)
{
    struct report held = {.kind = REPORT_HELD};
    sigset_t chld;

    if (run_phase(s, build, PHASE_BUILD) < 0)
        broken(s, PHASE_BUILD, errno);
    close(s->peer);
    sigemptyset(&chld);
    sigaddset(&chld, SIGCHLD);
    sigprocmask(SIG_BLOCK, &chld, NULL);
    int children = signalfd(-1, &chld, SFD_CLOEXEC);
    pid_t pid = children < 0 ? -1 : fork();
    if (pid < 0)
        broken(s, PHASE_BUILD, errno);
    if (pid == 0)
        payload(s, build);
    for (int fd = 0; fd < FIRST_FD; fd++)
        close(fd); /* the payload's */
    for (int slot = SLOT_LEAF; slot < SLOT_COUNT; slot++)
        if (s->slot[slot] >= 0)
            close(s->slot[slot]);
    if (s->leak)
        close(s->leak);
    if (run_phase(s, build, PHASE_HOLD) < 0)
        broken(s, PHASE_HOLD, errno);
    held.init_cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    if (send_report(s->slot[SLOT_CONTROL], &held, -1) < 0)
        _exit(EXIT_BROKEN);
    hold(s, pid, children);
}

/* --- spawner ---------------------------------------------------------------------------------------------------------- */

__attribute__((noreturn)) static void outer(const int *fds, size_t count)
{
    struct sandbox s = {.peer = -1, .listener = -1, .pidfd = -1};
    for (int slot = 0; slot < SLOT_COUNT; slot++)
        s.slot[slot] = slot + SPAWN_SLOTS < (int)count ? fds[slot + SPAWN_SLOTS] : -1;
    prctl(PR_SET_NAME, "sandboxd-init", 0, 0, 0);
    close(FIRST_FD); /* the spawner's socket */
    for (int fd = 0; fd < FIRST_FD; fd++)
        if (dup2(fds[SPAWN_STDIN + fd], fd) < 0 || close(fds[SPAWN_STDIN + fd]) < 0)
            broken(&s, PHASE_OUTER, errno);
    if (map_list(s.slot[SLOT_BUILD], &build_list) < 0)
        broken(&s, PHASE_OUTER, errno);
    if (run_phase(&s, &build_list, PHASE_OUTER) < 0)
        broken(&s, PHASE_OUTER, errno);
    _exit(0);
}

static void spawn(const int *fds, size_t count)
{
    int pidfd = -1;
    struct clone_args args = {.flags = CLONE_PARENT | CLONE_PIDFD, .pidfd = (uint64_t)(uintptr_t)&pidfd};
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0)
        outer(fds, count);
    struct report report = {.kind = pid < 0 ? REPORT_FAILED : REPORT_OUTER, .phase = PHASE_OUTER, .error = pid < 0 ? errno : 0};
    send_report(fds[SPAWN_SLOTS + SLOT_CONTROL], &report, pidfd); /* else the launcher sees the end of the file */
    if (pidfd >= 0)
        close(pidfd);
}

int main(void)
{
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0) /* before anything can look at this process */
        return EXIT_BROKEN;
    prctl(PR_SET_NAME, "sandboxd-spawn", 0, 0, 0); /* it was executed by a descriptor's number */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
        return EXIT_BROKEN;
    if (syscall(SYS_close_range, FIRST_FD + 1, ~0U, 0) < 0) /* every sandbox would inherit what came along */
        return EXIT_BROKEN;
    for (;;) {
        int fds[SPAWN_PARTS_MAX];
        char byte, room[CMSG_SPACE(sizeof fds)];
        struct iovec io = {&byte, 1};
        struct msghdr message = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
        ssize_t n = recvmsg(FIRST_FD, &message, MSG_CMSG_CLOEXEC);
        struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&message) : NULL;
        if (!c || c->cmsg_type != SCM_RIGHTS)
            return n == 0 ? 0 : EXIT_BROKEN;
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof *fds;
        memcpy(fds, CMSG_DATA(c), count * sizeof *fds);
        if (count > SPAWN_SLOTS + SLOT_BUILD)
            spawn(fds, count);
        for (size_t i = 0; i < count; i++)
            close(fds[i]);
    }
}
