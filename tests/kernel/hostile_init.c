/* An init that was taken over: init.c as it is, until its PID 1 or the payload's process is to report a certain thing. From there on
 * it says what the script has it say, to the launcher's face. The script is a file, SCRIPT, which the test writes anew for each
 * sandbox.
 */
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static ssize_t hostile_sendmsg(int socket, const struct msghdr *message, int flags);
static ssize_t hostile_recvmsg(int socket, struct msghdr *message, int flags);
static ssize_t hostile_read(int fd, void *to, size_t size);
#define sendmsg hostile_sendmsg
#define recvmsg hostile_recvmsg
#define read hostile_read
#define main init_main
#include "init.c"
#undef sendmsg
#undef recvmsg
#undef read
#undef main

enum { MESSAGES_MAX = 8, DESCRIPTORS_MAX = 4, BIRTH = 0 };
static const uint64_t AS_TOLD = UINT64_MAX - 1; /* a time in a report: the one of the report that it stands for */
enum then { GO_ON = 0, EXIT = 1, STAY = 2, HANG_UP = 3 };
enum descriptor { NULL_DEVICE, SILENT_PIPE, ENDED_PIPE, FOLDER, OWN_PIDFD, EPOLL, MEMFD, CONTROL, PATH, GIVEN };

struct message {
    uint32_t size;
    uint32_t repeat;
    uint32_t descriptor; /* enum descriptor */
    uint32_t descriptors;
    unsigned char content[64];
};

struct script {
    uint32_t at;   /* the report instead of which it turns hostile (enum report_kind), or BIRTH: PID 1's first step */
    uint32_t then; /* enum then */
    uint32_t count;
    uint32_t unused;
    struct message said[MESSAGES_MAX];
};
_Static_assert(sizeof(struct script) == 16 + MESSAGES_MAX * 80, "as the test packs it");

static const struct script *script;
static int inside, turned, control_at_birth, made[MESSAGES_MAX];

static int make(uint32_t kind)
{
    int pair[2];
    switch ((enum descriptor)kind) {
    case NULL_DEVICE: return open("/dev/null", O_RDWR);
    case SILENT_PIPE: return pipe(pair) < 0 ? -1 : pair[0];
    case ENDED_PIPE: return pipe(pair) < 0 || close(pair[1]) < 0 ? -1 : pair[0];
    case FOLDER: return open("/", O_RDONLY | O_DIRECTORY);
    case OWN_PIDFD: return (int)syscall(SYS_pidfd_open, getpid(), 0);
    case EPOLL: return epoll_create1(0);
    case MEMFD: return memfd_create("x", 0);
    case PATH: return open("/", O_PATH);
    default: return -1;
    }
}

static void make_all(void)
{
    for (int i = 0; i < MESSAGES_MAX; i++)
        made[i] = make(script->said[i].descriptor);
}

static void say(const struct message *m, int control, int fd, const struct report *instead)
{
    int fds[DESCRIPTORS_MAX];
    union { unsigned char bytes[sizeof m->content]; struct report report; } content;
    memcpy(content.bytes, m->content, sizeof content);
    if (content.report.exec_ns == AS_TOLD)
        content.report.exec_ns = instead->exec_ns;
    if (content.report.end_ns == AS_TOLD)
        content.report.end_ns = instead->end_ns;
    size_t count = m->descriptors < DESCRIPTORS_MAX ? m->descriptors : DESCRIPTORS_MAX;
    for (size_t i = 0; i < count; i++)
        fds[i] = fd >= 0 ? fd : control;
    char room[CMSG_SPACE(sizeof fds)] = {0};
    struct iovec io = {content.bytes, m->size < sizeof content ? m->size : sizeof content};
    struct msghdr message = {.msg_iov = &io, .msg_iovlen = 1};
    if (count) {
        message.msg_control = room;
        message.msg_controllen = CMSG_SPACE(count * sizeof *fds);
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        *c = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(count * sizeof *fds)};
        memcpy(CMSG_DATA(c), fds, count * sizeof *fds);
    }
    for (uint32_t i = 0; i < m->repeat; i++)
        sendmsg(control, &message, MSG_NOSIGNAL);
}

static void turn(int control, int given, const struct report *instead)
{
    turned = 1;
    if (script->at == REPORT_READY || script->at == REPORT_STARTED)
        make_all();
    for (uint32_t i = 0; i < script->count && i < MESSAGES_MAX; i++)
        say(&script->said[i], control, script->said[i].descriptor == GIVEN ? given : made[i], instead);
    if (script->then == EXIT)
        _exit(0);
    if (script->then == HANG_UP)
        close(control);
    while (script->then == STAY || script->then == HANG_UP)
        poll(NULL, 0, -1);
}

static ssize_t hostile_sendmsg(int socket, const struct msghdr *message, int flags)
{
    const struct report *report = message->msg_iov->iov_base;
    int given = -1;
    if (message->msg_controllen)
        memcpy(&given, CMSG_DATA(CMSG_FIRSTHDR(message)), sizeof given);
    if (inside && !turned && report->kind == script->at)
        turn(socket, given, report);
    return sendmsg(socket, message, flags);
}

static ssize_t hostile_recvmsg(int socket, struct msghdr *message, int flags)
{
    ssize_t n = recvmsg(socket, message, flags);
    if (!inside && n > 0) /* the spawner */
        memcpy(&control_at_birth, CMSG_DATA(CMSG_FIRSTHDR(message)) + SPAWN_SLOTS * sizeof(int), sizeof(int));
    return n;
}

/* PID 1's first step is to wait for outer. Later its filter lets it open nothing; the payload's process closes what it finds open. */
static ssize_t hostile_read(int fd, void *to, size_t size)
{
    if (!inside && getpid() == 1) {
        inside = 1;
        make_all();
        if (script->at == BIRTH)
            turn(control_at_birth, -1, &(struct report){0});
    }
    return read(fd, to, size);
}

int main(void)
{
    int fd = open(SCRIPT, O_RDONLY | O_CLOEXEC);
    script = mmap(NULL, sizeof *script, PROT_READ, MAP_SHARED, fd, 0);
    return fd < 0 || script == MAP_FAILED ? EXIT_BROKEN : init_main();
}
