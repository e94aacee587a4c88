/* Executes one step. Every case is one kernel action; none decides anything. */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* <sys/mount.h> cannot be included beside <linux/mount.h> (glibc 2.36). */
int mount(const char *, const char *, const char *, unsigned long, const void *);
int umount2(const char *, int);
#define MNT_DETACH 2

#define KEYCTL_JOIN_SESSION_KEYRING 1
#define SECCOMP_SET_MODE_FILTER 1
struct filter { unsigned short len; const void *code; }; /* struct sock_fprog */

#define BENEATH (RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)

static int beneath(int dir, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve)
{
    struct open_how how = {.flags = flags | O_CLOEXEC, .mode = mode, .resolve = resolve};
    return (int)syscall(SYS_openat2, dir, path, &how, sizeof how);
}

static int write_all(int fd, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, data, len);
        if (n < 0)
            return -1;
        data += n;
        len -= (size_t)n;
    }
    return 0;
}

/* Kernel files take their value in one write. */
static int write_once(int dir, const char *path, const char *value, uint64_t resolve)
{
    int fd = beneath(dir, path, O_WRONLY, 0, resolve);
    if (fd < 0)
        return -1;
    ssize_t n = write(fd, value, strlen(value));
    int saved = errno;
    close(fd);
    errno = saved;
    return n < 0 ? -1 : 0;
}

static int keep(struct sandbox *s, unsigned slot, int fd)
{
    if (fd < 0)
        return -1;
    if (s->slot[slot] >= 0)
        close(s->slot[slot]);
    s->slot[slot] = fd;
    return 0;
}

/* A procfs of this pid namespace that no path leads to: writes through it cannot be redirected (CVE-2025-52881). */
static int open_proc(void)
{
    int context = (int)syscall(SYS_fsopen, "proc", FSOPEN_CLOEXEC);
    if (context < 0)
        return -1;
    if (syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
        return -1;
    int fd = (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
    close(context);
    return fd;
}

/* time_namespaces(7): offsets are set before the first task enters; whole seconds keep both clocks positive. */
static int zero_clocks(struct sandbox *s, int proc)
{
    struct timespec monotonic, boottime;
    char offsets[96];
    if (clock_gettime(CLOCK_MONOTONIC, &monotonic) < 0 || clock_gettime(CLOCK_BOOTTIME, &boottime) < 0)
        return -1;
    snprintf(offsets, sizeof offsets, "monotonic -%lld 0\nboottime -%lld 0\n", (long long)monotonic.tv_sec, (long long)boottime.tv_sec);
    s->clock_offset_ns = (uint64_t)monotonic.tv_sec * 1000000000u;
    return write_once(proc, "self/timens_offsets", offsets, 0);
}

static int loopback_up(void)
{
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    int result = ioctl(fd, SIOCSIFFLAGS, &request);
    close(fd);
    return result;
}

static int make_dir(const char *path, uint64_t mode, uint64_t uid, uint64_t gid)
{
    if (mkdir(path, (mode_t)mode) < 0)
        return -1;
    return uid || gid ? chown(path, (uid_t)uid, (gid_t)gid) : 0;
}

/* The launcher's view of the write layer: it could not clone this namespace's mount itself. It lies on its folder, so that
 * it is unmounted with the old root, here: closing a detached mount's last descriptor would wait for every processor
 * (namespace_unlock, synchronize_rcu_expedited), in the launcher's loop. */
static int send_tree(struct sandbox *s, const char *path, uint64_t attributes)
{
    int tree = (int)syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (tree < 0)
        return -1;
    struct mount_attr attr = {.attr_set = attributes};
    if (syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attr, sizeof attr) < 0 ||
        syscall(SYS_move_mount, tree, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH) < 0)
        return -1;
    struct report report = {.kind = REPORT_TREE};
    int result = send_report(s->slot[SLOT_CONTROL], &report, tree);
    close(tree);
    return result;
}

/* pivot_root(2), NOTES: the old root ends up stacked under the working directory and is detached from there. */
static int pivot_root_here(void)
{
    if (syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0)
        return -1;
    return chdir("/");
}

static int landlock_create(struct sandbox *s, const struct step *st)
{
    uint64_t attr[3] = {st->arg[0], st->arg[1], st->arg[2]}; /* struct landlock_ruleset_attr, as far as this kernel knows it */
    if (st->arg[3] > sizeof attr)
        return errno = EINVAL, -1;
    return keep(s, st->slot, (int)syscall(SYS_landlock_create_ruleset, attr, st->arg[3], 0));
}

static int landlock_add(int ruleset, const char *path, uint64_t rights)
{
    struct landlock_path_beneath_attr rule = {.allowed_access = rights};
    rule.parent_fd = open(path, O_PATH | O_CLOEXEC | O_NOFOLLOW);
    if (rule.parent_fd < 0)
        return -1;
    int result = (int)syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0);
    close(rule.parent_fd);
    return result;
}

static int drop_bounding(uint64_t last)
{
    for (uint64_t cap = 0; cap <= last; cap++)
        if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
            return -1;
    return 0;
}

static int raise_ambient(uint64_t last)
{
    for (uint64_t cap = 0; cap <= last; cap++)
        if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0) < 0 && errno != EPERM) /* EPERM: not in the permitted set */
            return -1;
    return 0;
}

static int set_capabilities(uint64_t held, uint64_t inheritable)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    if (held) { /* `--without caps`: all that this process has */
        if (syscall(SYS_capget, &header, data) < 0)
            return -1;
        for (int i = 0; i < 2; i++) {
            data[i].effective = data[i].permitted;
            data[i].inheritable = inheritable ? data[i].permitted : 0;
        }
    } else {
        memset(data, 0, sizeof data);
    }
    return (int)syscall(SYS_capset, &header, data);
}

static int seccomp(struct sandbox *s, const void *program, uint32_t len, uint64_t flags)
{
    struct filter filter = {.len = (unsigned short)(len / 8), .code = program};
    long result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &filter);
    if (result > 0)
        s->listener = (int)result;
    return result < 0 ? -1 : 0;
}

/* A payload starts as a program started by a shell does. By the system call itself: libc keeps 32 and 33 to itself, and
 * posix_spawn left them ignored. KILL and STOP refuse: they have no other disposition. */
static int default_signals(void)
{
    struct { void (*handler)(int); unsigned long flags; void *restorer; uint64_t mask; } action = {.handler = SIG_DFL};
    uint64_t none = 0;
    for (int number = 1; number < NSIG; number++)
        if (syscall(SYS_rt_sigaction, number, &action, NULL, sizeof action.mask) < 0 && errno != EINVAL)
            return -1;
    return (int)syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, sizeof none);
}

/* Mapped, not read: one write of the whole is what lets the file system take big pages. The mapping goes with the exec.
 * Not sendfile(2): it leaves a pipe to the process, which counts against its user's. */
static int copy_file(int from, const char *path, uint64_t mode, uint64_t offset, uint64_t size)
{
    int fd = beneath(AT_FDCWD, path, O_WRONLY | O_CREAT | O_EXCL, mode, BENEATH | RESOLVE_NO_XDEV);
    if (fd < 0)
        return -1;
    int result = 0;
    if (size > 0) {
        uint64_t before = offset % (uint64_t)sysconf(_SC_PAGESIZE);
        char *part = mmap(NULL, before + size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, from, (off_t)(offset - before));
        result = part == MAP_FAILED ? -1 : write_all(fd, part + before, size);
    }
    int saved = errno;
    close(fd);
    errno = saved;
    return result;
}

/* The control socket moves to 3 (or 4 beside a leaked root) and closes itself on exec; all above goes now. */
static int close_others(struct sandbox *s)
{
    int first = s->leak ? 4 : 3;
    if (s->slot[SLOT_CONTROL] != first) {
        if (dup3(s->slot[SLOT_CONTROL], first, O_CLOEXEC) < 0)
            return -1;
        s->slot[SLOT_CONTROL] = first;
    }
    if (s->leak && dup2(s->leak, 3) < 0)
        return -1;
    return (int)syscall(SYS_close_range, first + 1, ~0U, 0);
}

/* Taken early, out of the way; close_others makes it 3. */
static int leak_root(struct sandbox *s)
{
    int fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    s->leak = fcntl(fd, F_DUPFD_CLOEXEC, 64);
    close(fd);
    return s->leak < 0 ? -1 : 0;
}

static int fail(int error)
{
    if (!error) {
        kill(getpid(), SIGKILL);
        _exit(0); /* PID 1 is deaf to its own signals (pid_namespaces(7)), and a filter may be in place already */
    }
    errno = error;
    return -1;
}

int execute(struct sandbox *s, const struct image *in, const struct step *st)
{
    const char *str[4];
    for (int i = 0; i < 4; i++)
        str[i] = text(in, st->str[i]);
    int fd = st->slot < SLOT_COUNT ? s->slot[st->slot] : -1;

    switch ((enum op)st->op) {
    case OP_CLONE: return clone_init(s, st->arg[0]);
    case OP_ATTACH_CGROUP: return attach_cgroup(s, fd);
    case OP_WRITE_ID_MAP: return write_id_map(s, str[0], str[1]);
    case OP_NOTIFY: return write(s->peer, "", 1) == 1 ? 0 : -1;
    case OP_WAIT: return await_peer(s);
    case OP_PRCTL: return prctl((int)st->arg[0], st->arg[1], st->arg[2], st->arg[3], 0) < 0 ? -1 : 0;
    case OP_SETSID: return setsid() < 0 ? -1 : 0;
    case OP_UMASK: umask((mode_t)st->arg[0]); return 0;
    case OP_UNSHARE: return unshare((int)st->arg[0]);
    case OP_OPEN_PROC: return keep(s, st->slot, open_proc());
    case OP_ZERO_CLOCKS: return zero_clocks(s, fd);
    case OP_MOUNT: return mount(str[0], str[1], str[2], st->arg[0], str[3]);
    case OP_MKDIR: return make_dir(str[0], st->arg[0], st->arg[1], st->arg[2]);
    case OP_SYMLINK: return symlink(str[0], str[1]);
    case OP_MKNOD: return mknod(str[0], (mode_t)st->arg[0], (dev_t)st->arg[1]);
    case OP_SEND_TREE: return send_tree(s, str[0], st->arg[0]);
    case OP_CHDIR: return chdir(str[0]);
    case OP_PIVOT_ROOT: return pivot_root_here();
    case OP_LOOPBACK_UP: return loopback_up();
    case OP_SETHOSTNAME: return sethostname(str[0], strlen(str[0]));
    case OP_SETDOMAINNAME: return setdomainname(str[0], strlen(str[0]));
    case OP_JOIN_KEYRING: return syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL) < 0 ? -1 : 0;
    case OP_SETPRIORITY: return setpriority(PRIO_PROCESS, 0, (int)st->arg[0]);
    case OP_LANDLOCK_CREATE: return landlock_create(s, st);
    case OP_LANDLOCK_ADD: return landlock_add(fd, str[0], st->arg[0]);
    case OP_LANDLOCK_RESTRICT: return (int)syscall(SYS_landlock_restrict_self, fd, (uint32_t)st->arg[0]);
    case OP_WRITE_AT: return write_once(fd, str[0], str[1], 0);
    case OP_SETGROUPS: return setgroups(0, NULL);
    case OP_SETRESGID: return setresgid((gid_t)st->arg[0], (gid_t)st->arg[0], (gid_t)st->arg[0]);
    case OP_SETRESUID: return setresuid((uid_t)st->arg[0], (uid_t)st->arg[0], (uid_t)st->arg[0]);
    case OP_SETEUID: return setresuid((uid_t)-1, (uid_t)st->arg[0], (uid_t)-1);
    case OP_DROP_BOUNDING: return drop_bounding(st->arg[0]);
    case OP_CAPSET: return set_capabilities(st->arg[0], st->arg[1]);
    case OP_RAISE_AMBIENT: return raise_ambient(st->arg[0]);
    case OP_SECCOMP: return seccomp(s, str[0], st->len, st->arg[0]);
    case OP_SETRLIMIT: return setrlimit((int)st->arg[0], &(struct rlimit){st->arg[1], st->arg[2]});
    case OP_STDIN: return dup2(fd, 0) < 0 ? -1 : 0;
    case OP_CLOSE_RANGE: return close_others(s);
    case OP_COPY_FILE: return copy_file(fd, str[0], st->arg[0], st->arg[1], st->arg[2]);
    case OP_SIGNALS: return default_signals();
    case OP_LEAK_ROOT: return leak_root(s);
    case OP_FAIL: return fail((int)st->arg[0]);
    case OP_EXEC: break; /* not here: see payload() */
    }
    errno = ENOSYS;
    return -1;
}
