/* Tries things that a sandbox must refuse. usage: attempts NAME[=ARGUMENT]...
 * `reviewed=NAME` tries those of NAME=0 to NAME=1023 that the table beside the program refuses, names the ones that are
 * answered otherwise, and ends with `succeeded`, or `refused` where there is none.
 *
 * Each attempt runs in a child of its own and gives one line, `NAME RESULT`: `succeeded`, the errno's name, or the name of
 * the signal that ended the child. Linked statically, so that it runs in any image. It is harmless where it succeeds: what it
 * mounts, makes or sets lies in the child's own namespaces or files, and no packet is ever sent.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/io_uring.h>
#include <linux/perf_event.h>
#include <linux/sched.h>
#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif
#define SCRATCH "/tmp"
#define NUMBERS 1024

typedef long attempt(const char *argument);

/* --- privileges */

static long set_uid_0(const char *a) { (void)a; return setresuid(0, 0, 0); }
static long set_gid_0(const char *a) { (void)a; return setresgid(0, 0, 0); }
static long set_groups(const char *a) { (void)a; return setgroups(1, (gid_t[]){0}); }

static long gain_capabilities(const char *a)
{
    (void)a;
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{1u << CAP_SYS_ADMIN, 1u << CAP_SYS_ADMIN, 0}, {0}};
    return syscall(SYS_capset, &header, data);
}

static long set_file_capability(const char *a)
{
    (void)a;
    uint32_t value[5] = {0x02000001u, 1u << CAP_SYS_ADMIN, 0, 0, 0}; /* VFS_CAP_REVISION_2, effective */
    close(open(SCRATCH "/capable", O_CREAT | O_WRONLY, 0755));
    return setxattr(SCRATCH "/capable", "security.capability", value, sizeof value, 0);
}

static long give_away(const char *a) { (void)a; close(open(SCRATCH "/mine", O_CREAT | O_WRONLY, 0755)); return chown(SCRATCH "/mine", 0, 0); }
static long make_node(const char *a) { (void)a; return mknod(SCRATCH "/node", S_IFBLK | 0600, makedev(7, 0)); }
static long make_char_node(const char *a) { (void)a; return mknod(SCRATCH "/null", S_IFCHR | 0600, makedev(1, 3)); }
static long set_hostname(const char *a) { (void)a; return sethostname("changed", 7); }
static long raise_nice(const char *a) { (void)a; return setpriority(PRIO_PROCESS, 0, -5); }
static long raise_realtime(const char *a) { (void)a; return sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){1}); }

/* --- what the program is; ENODATA: nothing beyond what it should be */

static long nothing_of_it(void) { return errno = ENODATA, -1; }
static long any_capability(const char *a)
{
    (void)a;
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{0}};
    if (syscall(SYS_capget, &header, data) < 0)
        return -1;
    for (int half = 0; half < 2; half++)
        if (data[half].effective | data[half].permitted | data[half].inheritable)
            return 0;
    for (unsigned long capability = 0; capability <= CAP_LAST_CAP; capability++)
        if (prctl(PR_CAPBSET_READ, capability) == 1 || prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, capability, 0, 0) == 1)
            return 0;
    return nothing_of_it();
}
static long any_freedom(const char *a) /* to gain rights by execve, or to call what it likes */
{
    (void)a;
    return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1 || prctl(PR_GET_SECCOMP) != 2 ? 0 : nothing_of_it();
}
static long any_identity(const char *a) /* but the sandbox's one user, in no other group */
{
    (void)a;
    uid_t real, effective, saved;
    gid_t group, effective_group, saved_group;
    if (getresuid(&real, &effective, &saved) < 0 || getresgid(&group, &effective_group, &saved_group) < 0)
        return -1;
    int usual = real == 1000 && effective == 1000 && saved == 1000;
    usual &= group == 1000 && effective_group == 1000 && saved_group == 1000;
    return usual && getgroups(0, NULL) == 0 ? nothing_of_it() : 0;
}
static long any_descriptor(const char *a) /* but 0 to 2, and the pipe that this attempt tells its result by */
{
    (void)a;
    int opened = 0;
    for (int fd = 0; fd < 65536; fd++)
        opened += fcntl(fd, F_GETFD) >= 0;
    return opened > 5 ? 0 : nothing_of_it();
}

/* --- mounts */

static long mount_type(const char *type) { return mount("x", SCRATCH, type, 0, NULL); }
static long mount_bind(const char *a) { (void)a; return mount("/usr", SCRATCH, NULL, MS_BIND, NULL); }
static long remount_writable(const char *path) { return mount(NULL, path, NULL, MS_REMOUNT | MS_BIND, NULL); }
static long unmount(const char *path) { return umount2(path, MNT_DETACH); }
static long pivot(const char *a)
{
    (void)a;
    if (mount("x", SCRATCH, "tmpfs", 0, NULL) < 0 || chdir(SCRATCH) < 0)
        return -1;
    return syscall(SYS_pivot_root, ".", ".");
}
static long change_root(const char *a) { (void)a; return chroot(SCRATCH); }
static long fs_open(const char *type)
{
    int context = (int)syscall(SYS_fsopen, type, 0);
    if (context < 0 || syscall(SYS_fsconfig, context, 6 /* FSCONFIG_CMD_CREATE */, NULL, NULL, 0) < 0)
        return -1;
    int fd = (int)syscall(SYS_fsmount, context, 0, 0);
    return fd < 0 ? -1 : syscall(SYS_move_mount, fd, "", AT_FDCWD, SCRATCH, 4 /* MOVE_MOUNT_F_EMPTY_PATH */);
}
static long clone_tree(const char *a) { (void)a; return syscall(SYS_open_tree, AT_FDCWD, "/usr", 1 /* OPEN_TREE_CLONE */); }
static long set_mount_attributes(const char *a)
{
    (void)a;
    struct { uint64_t set, clear, propagation, userns; } attr = {.clear = 1 /* MOUNT_ATTR_RDONLY */};
    return syscall(SYS_mount_setattr, AT_FDCWD, "/usr", 0, &attr, sizeof attr);
}

/* --- namespaces */

static long unshare_flags(const char *flags) { return unshare((int)strtoul(flags, NULL, 0)); }
static long clone_flags(const char *flags)
{
    long pid = syscall(SYS_clone, strtoul(flags, NULL, 0) | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0)
        _exit(0);
    return pid < 0 ? -1 : waitpid((pid_t)pid, NULL, 0);
}
static long clone3_flags(const char *flags)
{
    struct clone_args args = {.flags = strtoull(flags, NULL, 0), .exit_signal = SIGCHLD};
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0)
        _exit(0);
    return pid < 0 ? -1 : waitpid((pid_t)pid, NULL, 0);
}
static long enter(const char *name)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/ns/%s", name);
    int fd = open(path, O_RDONLY);
    return fd < 0 ? -1 : setns(fd, 0);
}

/* --- other processes; the argument is a pid */

static long attach(const char *pid) { return ptrace(PTRACE_SEIZE, atoi(pid), 0, 0); }
static long trace_me(const char *a) { (void)a; return ptrace(PTRACE_TRACEME, 0, 0, 0); }
static long read_memory(const char *pid)
{
    char byte;
    struct iovec local = {&byte, 1}, remote = {(void *)0x1000, 1}; /* not there: EFAULT is leave to look */
    long n = syscall(SYS_process_vm_readv, atoi(pid), &local, 1, &remote, 1, 0);
    return n < 0 && errno == EFAULT ? 0 : n;
}
static long write_memory(const char *pid)
{
    char byte = 0;
    struct iovec local = {&byte, 1}, remote = {(void *)0x1000, 1};
    long n = syscall(SYS_process_vm_writev, atoi(pid), &local, 1, &remote, 1, 0);
    return n < 0 && errno == EFAULT ? 0 : n;
}
static long steal_fd(const char *pid)
{
    int pidfd = (int)syscall(SYS_pidfd_open, atoi(pid), 0), last = EBADF;
    if (pidfd < 0)
        return -1;
    for (int fd = 0; fd < 64; fd++) {
        if (syscall(SYS_pidfd_getfd, pidfd, fd, 0) >= 0)
            return 0;
        last = errno == EBADF ? last : errno;
    }
    errno = last;
    return -1;
}
static long compare(const char *pid) { return syscall(SYS_kcmp, getpid(), atoi(pid), 2 /* KCMP_VM */, 0, 0); }
static long kill_it(const char *pid) { return kill(atoi(pid), SIGKILL); }
static long stop_it(const char *pid) { return kill(atoi(pid), SIGSTOP); }

/* --- files; the argument is a path */

static long open_read(const char *path) { return open(path, O_RDONLY | O_NONBLOCK); }
static long open_write(const char *path) { return open(path, O_WRONLY | O_NONBLOCK); }
static long create(const char *path) { return open(path, O_WRONLY | O_CREAT | O_EXCL, 0644); }
static long read_link(const char *path) { char room[256]; return readlink(path, room, sizeof room); }

/* --- below the descriptor of the host's root that `--without mount` leaves open. What is there is never changed but where a
 * test says which file of its own it is: the rest asks for what leaves no trace. */

enum { LEAKED = 3 };
static const char *leaked(const char *path) /* for calls that take no descriptor */
{
    static char name[300];
    snprintf(name, sizeof name, "/proc/self/fd/%d/%s", LEAKED, path);
    return name;
}
static long read_leaked(const char *path)
{
    char byte;
    int fd = openat(LEAKED, path, O_RDONLY);
    return fd < 0 || read(fd, &byte, 1) < 0 ? -1 : 0;
}
static long list_leaked(const char *path) { return openat(LEAKED, path, O_RDONLY | O_DIRECTORY); }
static long truncate_leaked(const char *path) { return truncate(leaked(path), 0); }
static long make_leaked(const char *path) { return mkdirat(LEAKED, path, 0755); }
static long node_leaked(const char *path) { return mkfifoat(LEAKED, path, 0644); }
static long link_leaked(const char *path) { return symlinkat("link", LEAKED, path); }
static long unlink_leaked(const char *path) { return unlinkat(LEAKED, path, 0); }
/* A file without a name, gone with its descriptor. */
static long create_leaked(const char *folder) { return openat(LEAKED, folder, O_TMPFILE | O_WRONLY, 0600); }
static long exec_leaked(const char *path)
{
    volatile int error = 0;
    pid_t pid = vfork();
    if (pid == 0) {
        syscall(SYS_execveat, LEAKED, path, (char *[]){"leaked", NULL}, NULL, 0);
        error = errno;
        _exit(1);
    }
    if (pid < 0 || waitpid(pid, NULL, 0) != pid)
        return -1;
    errno = error;
    return error ? -1 : 0;
}
static long stat_leaked(const char *path) { struct stat found; return fstatat(LEAKED, path, &found, AT_SYMLINK_NOFOLLOW); }
static long point_leaked(const char *path) { return openat(LEAKED, path, O_PATH); }
static long read_link_leaked(const char *path) { char room[256]; return readlinkat(LEAKED, path, room, sizeof room); }
static long watch_leaked(const char *path) { return inotify_add_watch(inotify_init(), leaked(path), IN_ALL_EVENTS); }
static long list_attributes_leaked(const char *path) { return listxattr(leaked(path), NULL, 0); }
static long set_attribute_leaked(const char *path) /* ENODATA only for who may set it; there is none to replace */
{
    long r = setxattr(leaked(path), "user.sandboxd-none", "x", 1, XATTR_REPLACE);
    return r < 0 && errno == ENODATA ? 0 : r;
}
static long touch_leaked(const char *path) { return utimensat(LEAKED, path, NULL, 0); } /* to now, as whoever makes a file in it */

/* --- handles and roots */

static long handle(const char *path)
{
    struct { struct file_handle head; char room[128]; } h = {.head.handle_bytes = 128};
    int mount_id;
    return name_to_handle_at(AT_FDCWD, path, &h.head, &mount_id, 0);
}
static long open_handle(const char *path)
{
    struct { struct file_handle head; char room[128]; } h = {.head.handle_bytes = 128};
    int mount_id, root = open("/", O_RDONLY | O_DIRECTORY);
    if (name_to_handle_at(AT_FDCWD, path, &h.head, &mount_id, 0) < 0)
        return -1;
    return open_by_handle_at(root, &h.head, O_RDONLY);
}
/* chroot below, keep a descriptor above, walk up: the classic. Success is another root than before. */
static long walk_out(const char *a)
{
    (void)a;
    struct stat before, after;
    int above = open("/", O_RDONLY | O_DIRECTORY);
    if (stat("/", &before) < 0 || mkdir(SCRATCH "/below", 0755) < 0)
        return -1;
    if (chroot(SCRATCH "/below") < 0 || fchdir(above) < 0)
        return -1;
    for (int i = 0; i < 64; i++)
        if (chdir("..") < 0)
            return -1;
    if (chroot(".") < 0 || stat("/", &after) < 0)
        return -1;
    errno = EXDEV; /* still the same root */
    return before.st_ino == after.st_ino && before.st_dev == after.st_dev ? -1 : 0;
}

/* --- the kernel's wide surface */

static long make_socket(const char *numbers)
{
    int family, type, protocol;
    if (sscanf(numbers, "%d,%d,%d", &family, &type, &protocol) != 3)
        return errno = EINVAL, -1;
    return socket(family, type, protocol);
}
/* connect(2) of a datagram socket looks a route up and sends nothing. */
static long route_to(const char *address)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(9)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(9)};
    if (inet_pton(AF_INET, address, &v4.sin_addr) == 1)
        return connect(socket(AF_INET, SOCK_DGRAM, 0), (struct sockaddr *)&v4, sizeof v4);
    if (inet_pton(AF_INET6, address, &v6.sin6_addr) == 1)
        return connect(socket(AF_INET6, SOCK_DGRAM, 0), (struct sockaddr *)&v6, sizeof v6);
    return errno = EINVAL, -1;
}
static long connect_abstract(const char *name)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    strncpy(at.sun_path + 1, name, sizeof at.sun_path - 2);
    return connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&at, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name)));
}
static long connect_path(const char *path)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    snprintf(at.sun_path, sizeof at.sun_path, "%s", path);
    return connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&at, sizeof at);
}
static long connect_leaked(const char *path) /* a folder, say: it is refused by no wall, but because nobody listens */
{
    long r = connect_path(leaked(path));
    return r < 0 && errno == ECONNREFUSED ? 0 : r;
}
static long io_uring(const char *a) { (void)a; struct io_uring_params p = {0}; return syscall(SYS_io_uring_setup, 4, &p); }
static long user_fault(const char *a) { (void)a; return syscall(SYS_userfaultfd, 1 /* UFFD_USER_MODE_ONLY */); }
static long bpf_map(const char *a)
{
    (void)a;
    union bpf_attr attr = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
    return syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr);
}
static long perf(const char *a)
{
    (void)a;
    struct perf_event_attr attr = {.type = PERF_TYPE_SOFTWARE, .size = sizeof attr, .config = PERF_COUNT_SW_TASK_CLOCK, .exclude_kernel = 1};
    return syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
}
static long add_key(const char *a) { (void)a; return syscall(SYS_add_key, "user", "canary", "x", 1, -2 /* process keyring */); }
static long key_control(const char *a) { (void)a; return syscall(SYS_keyctl, 0 /* GET_KEYRING_ID */, -3 /* session */, 1); }
static long request_key(const char *a) { (void)a; long r = syscall(SYS_request_key, "user", "canary", NULL, 0); return r < 0 && errno == ENOKEY ? 0 : r; }
static long fanotify(const char *a) { (void)a; return (long)fanotify_init(FAN_CLASS_NOTIF | FAN_REPORT_FID, O_RDONLY); }
static long secret_memory(const char *a) { (void)a; return syscall(SYS_memfd_secret, 0); }
static long gift_pages(const char *a)
{
    (void)a;
    int pair[2];
    char byte = 0;
    struct iovec io = {&byte, 1};
    return pipe(pair) < 0 ? -1 : syscall(SYS_vmsplice, pair[1], &io, 1, 0);
}
static long make_queue(const char *a) { (void)a; return syscall(SYS_mq_open, "sandboxd", O_CREAT | O_RDWR, 0600, NULL); }
static long old_aio(const char *a) { (void)a; unsigned long context = 0; return syscall(SYS_io_setup, 1, &context); }
static long odd_personality(const char *a) { (void)a; return personality(READ_IMPLIES_EXEC); }
static long move_memory(const char *a) { (void)a; void *page = NULL; int status; return syscall(SYS_move_pages, 0, 0, &page, NULL, &status, 0); }
static long kernel_log(const char *a) { (void)a; return syscall(SYS_syslog, 10 /* SIZE_BUFFER */, NULL, 0); }
static long set_clock(const char *a)
{
    (void)a;
    struct timespec bad = {.tv_nsec = 2000000000}; /* EINVAL only for who may set it; it is never set */
    long r = syscall(SYS_clock_settime, CLOCK_REALTIME, &bad);
    return r < 0 && errno == EINVAL ? 0 : r;
}
static long set_mm(const char *a) { (void)a; long r = prctl(PR_SET_MM, 99, 0, 0, 0); return r < 0 && errno == EINVAL ? 0 : r; }
static long listener(const char *a)
{
    (void)a;
    long r = syscall(SYS_seccomp, 1 /* SET_MODE_FILTER */, 8 /* NEW_LISTENER */, NULL);
    return r < 0 && errno == EFAULT ? 0 : r; /* it looked at the program */
}
static long raise_core(const char *soft)
{
    struct rlimit limit = {strtoull(soft, NULL, 0), 1};
    return setrlimit(RLIMIT_CORE, &limit);
}
static long raise_files(const char *a) { (void)a; return setrlimit(RLIMIT_NOFILE, &(struct rlimit){1u << 20, 1u << 20}); }
static long terminal(const char *numbers) /* fd,request: a terminal's request on what is none gives ENOTTY */
{
    int fd;
    unsigned long request;
    if (sscanf(numbers, "%d,%lx", &fd, &request) != 2)
        return errno = EINVAL, -1;
    char byte = 'x';
    return syscall(SYS_ioctl, fd, request, &byte);
}
/* Pushes a character into the input of a terminal that the process makes and owns. */
static long push_input(const char *a)
{
    (void)a;
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    return master < 0 ? -1 : ioctl(master, TIOCSTI, "x");
}
static long lease(const char *a) { (void)a; close(open(SCRATCH "/leased", O_CREAT | O_WRONLY, 0644)); return fcntl(open(SCRATCH "/leased", O_RDONLY), F_SETLEASE, F_RDLCK); }
static long notify(const char *folder) { return fcntl(open(folder, O_RDONLY | O_DIRECTORY), F_NOTIFY, DN_ACCESS | DN_CREATE); }
/* Call number N with every argument -1, or 0. It may block, fork, or end its caller. */
static long number_with(const char *n, long a)
{
    pid_t me = getpid();
    alarm(1);
    long result = syscall(strtol(n, NULL, 0), a, a, a, a, a, a);
    int error = errno;
    if (getpid() != me)
        _exit(0);
    errno = error;
    return result;
}
static long number(const char *n) { return number_with(n, -1); }
static long number_0(const char *n) { return number_with(n, 0); }

#ifdef __x86_64__
static long int_80(const char *n)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(strtol(n, NULL, 0)), "b"(0), "c"(0), "d"(0) : "memory");
    if (result < 0)
        errno = (int)-result;
    return result < 0 ? -1 : 0;
}
static long x32(const char *n) { return syscall(0x40000000L | strtol(n, NULL, 0)); }
static long local_descriptors(const char *a) { (void)a; char room[16]; return syscall(SYS_modify_ldt, 0, room, sizeof room); }
#endif

static const struct { const char *name; attempt *run; } attempts[] = {
    {"set-uid-0", set_uid_0}, {"set-gid-0", set_gid_0}, {"set-groups", set_groups}, {"gain-capabilities", gain_capabilities},
    {"set-file-capability", set_file_capability}, {"give-away", give_away}, {"make-node", make_node},
    {"make-char-node", make_char_node}, {"set-hostname", set_hostname}, {"raise-nice", raise_nice}, {"raise-realtime", raise_realtime},
    {"any-capability", any_capability}, {"any-freedom", any_freedom}, {"any-identity", any_identity}, {"any-descriptor", any_descriptor},
    {"mount", mount_type}, {"mount-bind", mount_bind}, {"remount-writable", remount_writable}, {"unmount", unmount}, {"pivot", pivot},
    {"chroot", change_root}, {"fsopen", fs_open}, {"open-tree", clone_tree}, {"mount-setattr", set_mount_attributes},
    {"unshare", unshare_flags}, {"clone", clone_flags}, {"clone3", clone3_flags}, {"setns", enter},
    {"attach", attach}, {"trace-me", trace_me}, {"read-memory", read_memory}, {"write-memory", write_memory}, {"steal-fd", steal_fd},
    {"compare", compare}, {"kill", kill_it}, {"stop", stop_it},
    {"open", open_read}, {"open-write", open_write}, {"create", create}, {"readlink", read_link},
    {"read-leaked", read_leaked}, {"list-leaked", list_leaked}, {"truncate-leaked", truncate_leaked}, {"mkdir-leaked", make_leaked},
    {"mkfifo-leaked", node_leaked}, {"symlink-leaked", link_leaked}, {"unlink-leaked", unlink_leaked}, {"create-leaked", create_leaked},
    {"exec-leaked", exec_leaked}, {"stat-leaked", stat_leaked}, {"open-path-leaked", point_leaked}, {"readlink-leaked", read_link_leaked},
    {"watch-leaked", watch_leaked}, {"list-xattr-leaked", list_attributes_leaked}, {"set-xattr-leaked", set_attribute_leaked},
    {"touch-leaked", touch_leaked}, {"connect-leaked", connect_leaked},
    {"handle", handle}, {"open-handle", open_handle}, {"walk-out", walk_out},
    {"socket", make_socket}, {"route", route_to}, {"abstract", connect_abstract}, {"connect", connect_path},
    {"io-uring", io_uring}, {"userfaultfd", user_fault}, {"bpf", bpf_map}, {"perf", perf}, {"add-key", add_key}, {"keyctl", key_control},
    {"request-key", request_key}, {"fanotify", fanotify}, {"memfd-secret", secret_memory}, {"vmsplice", gift_pages}, {"old-aio", old_aio},
    {"personality", odd_personality}, {"move-pages", move_memory}, {"syslog", kernel_log}, {"clock-settime", set_clock}, {"set-mm", set_mm},
    {"listener", listener}, {"raise-core", raise_core}, {"raise-files", raise_files}, {"terminal", terminal}, {"push-input", push_input},
    {"lease", lease}, {"notify", notify}, {"queue", make_queue}, {"number", number}, {"number-0", number_0},
#ifdef __x86_64__
    {"int-80", int_80}, {"x32", x32}, {"modify-ldt", local_descriptors},
#endif
};

static const char *told(int status, int error)
{
    static char signal_name[16];
    if (WIFSIGNALED(status)) {
        snprintf(signal_name, sizeof signal_name, "SIG%s", sigabbrev_np(WTERMSIG(status)));
        return signal_name;
    }
    return error ? strerrorname_np(error) : "succeeded";
}

/* What an attempt is answered, NULL when it could not be tried. */
static const char *try(const char *name)
{
    size_t length = strcspn(name, "=");
    for (size_t i = 0; i < sizeof attempts / sizeof *attempts; i++) {
        if (strlen(attempts[i].name) != length || strncmp(attempts[i].name, name, length) != 0)
            continue;
        int pair[2], error = 0, status;
        if (pipe(pair) < 0)
            return NULL;
        pid_t pid = fork();
        if (pid < 0)
            return NULL;
        if (pid == 0) {
            errno = 0;
            if (attempts[i].run(name[length] ? name + length + 1 : "") < 0)
                error = errno;
            _exit(write(pair[1], &error, sizeof error) == (ssize_t)sizeof error ? 0 : 99);
        }
        close(pair[1]);
        if (waitpid(pid, &status, 0) != pid)
            return NULL;
        int was_told = read(pair[0], &error, sizeof error) == (ssize_t)sizeof error;
        close(pair[0]);
        return !WIFSIGNALED(status) && !was_told ? "exited" : told(status, error);
    }
    fprintf(stderr, "no such attempt: %s\n", name);
    return NULL;
}

static int report(const char *name)
{
    const char *answer = try(name);
    if (answer)
        printf("%s %s\n", name, answer);
    return answer ? 0 : -1;
}

#ifdef __x86_64__
/* Since 6.14 the kernel lets uretprobe and uprobe pass every filter, and answers them itself (kernel/seccomp.c). */
static int passes_every_filter(int n) { return n == 335 || n == 336; }

static struct { char name[32], answers[2][16], told[16]; } table[NUMBERS];

static int read_table(void)
{
    char line[128];
    FILE *file = fopen("syscalls-x86_64.txt", "r");
    if (!file)
        return -1;
    for (int n = 0; n < NUMBERS; n++)
        strcpy(table[n].name, "?"), strcpy(table[n].answers[0], "ENOSYS"), strcpy(table[n].answers[1], "ENOSYS");
    while (fgets(line, sizeof line, file)) {
        int n, at;
        if (sscanf(line, "%d %n", &n, &at) == 1 && n >= 0 && n < NUMBERS)
            sscanf(line + at, "%31s %15s %15s", table[n].name, table[n].answers[0], table[n].answers[1]);
    }
    return fclose(file);
}

static int next_refused(int n, int column)
{
    while (n < NUMBERS && strcmp(table[n].answers[column], "allowed") == 0)
        n++;
    return n;
}

/* What is refused changes nothing, so one child asks for all, and another one goes on where it was killed. One that has let
 * itself be traced (ptrace, where it is open) stops instead of being ended by its alarm. */
static int ask_from(int first, int column, long a)
{
    int pair[2], status, n = first, error;
    if (pipe(pair) < 0)
        return -1;
    pid_t pid = fork();
    if (pid < 0)
        return -1;
    if (pid == 0) {
        for (; n < NUMBERS; n = next_refused(n + 1, column)) {
            char number[8];
            snprintf(number, sizeof number, "%d", n);
            errno = 0;
            error = number_with(number, a) < 0 ? errno : 0;
            if (write(pair[1], &error, sizeof error) != sizeof error)
                _exit(99);
        }
        _exit(0);
    }
    close(pair[1]);
    for (; n < NUMBERS; n = next_refused(n + 1, column)) {
        if (poll(&(struct pollfd){pair[0], POLLIN, 0}, 1, 1500) != 1 || read(pair[0], &error, sizeof error) != sizeof error)
            break;
        snprintf(table[n].told, sizeof table[n].told, "%s", told(0, error));
    }
    close(pair[0]);
    if (n < NUMBERS)
        kill(pid, SIGKILL);
    if (waitpid(pid, &status, 0) != pid)
        return -1;
    if (n < NUMBERS) {
        snprintf(table[n].told, sizeof table[n].told, "%s", WIFSIGNALED(status) ? told(status, 0) : "exited");
        n = next_refused(n + 1, column);
    }
    return n;
}

static int reviewed(const char *name)
{
    int column = strcmp(name, "number-0") == 0, opened = 0;
    if (read_table() < 0)
        return -1;
    for (int n = next_refused(0, column); n < NUMBERS;)
        if ((n = ask_from(n, column, column ? 0 : -1)) < 0)
            return -1;
    for (int n = next_refused(0, column); n < NUMBERS; n = next_refused(n + 1, column)) {
        const char *expected = table[n].answers[column], *answer = table[n].told;
        if (strcmp(expected, "killed") == 0)
            expected = "SIGSYS";
        if (strcmp(answer, "ENOTSUP") == 0)
            answer = "EOPNOTSUPP"; /* one number, two names */
        if (strcmp(answer, expected) == 0 || (passes_every_filter(n) && strcmp(answer, "succeeded") != 0))
            continue;
        printf("%d(%s):%s, not %s\n", n, table[n].name, answer, expected);
        opened++;
    }
    puts(opened ? "succeeded" : "refused");
    return 0;
}
#endif

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 1; i < argc; i++) {
        int failed;
#ifdef __x86_64__
        if (strncmp(argv[i], "reviewed=", 9) == 0)
            failed = reviewed(argv[i] + 9);
        else
#endif
            failed = report(argv[i]);
        if (failed < 0)
            return perror(argv[i]), 1;
    }
    return 0;
}
