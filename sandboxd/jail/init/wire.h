/* What crosses between the launcher and init. The Python side is sandboxd/jail/steps.py and sandboxd/jail/wire.py;
 * tests/unit/test_wire.py holds the two against each other. Native byte order: both ends run on one machine. */
#ifndef SANDBOXD_WIRE_H
#define SANDBOXD_WIRE_H

#include <stdint.h>

#define WIRE_MAGIC 0x64786273u /* "sbxd" */
#define WIRE_VERSION 3u
#define WIRE_STEPS_MAX 16384u
#define WIRE_BYTES_MAX (64u << 20)

/* Which process executes a step, and when. */
enum phase {
    PHASE_OUTER = 0,   /* the first process, still in the host's namespaces */
    PHASE_BUILD = 1,   /* PID 1 */
    PHASE_PAYLOAD = 2, /* PID 2: the loss of all rights, before it knows its job */
    PHASE_HOLD = 3,    /* PID 1, after it forked the payload */
    PHASE_JOB = 4,     /* PID 2, with the job in hand: files, limits */
    PHASE_EXEC = 5,    /* PID 2, the candidates of its command */
};

/* A descriptor known only at run time is named by its slot. */
enum slot {
    SLOT_CONTROL = 0,  /* socket to the launcher */
    SLOT_LEAF = 1,     /* the sandbox's cgroup v2 directory */
    SLOT_BUILD = 2,    /* the build list */
    SLOT_ATTACH = 3,   /* 3..6: cgroup.procs of cgroup v1 leaves */
    SLOT_PROC = 7,     /* a procfs of this pid namespace that is mounted nowhere */
    SLOT_LANDLOCK = 8, /* the payload's ruleset */
    SLOT_INPUTS = 9,   /* what the job's files hold */
    SLOT_STDIN = 10,   /* the job's stdin, where it is not empty */
    SLOT_COUNT = 11,
};

/* What comes with a job, in this order; the message's one byte is their sum. */
enum job_part {
    JOB_LIST = 1,
    JOB_INPUTS = 2,
    JOB_STDIN = 4,
};

enum op {
    OP_CLONE = 1,           /* arg0 flags: PID 1 is made, and its pidfd sent to its parent, the launcher */
    OP_ATTACH_CGROUP = 2,   /* slot */
    OP_SETEUID = 3,         /* arg0: who owns the user namespace that is made next */
    OP_WRITE_ID_MAP = 4,    /* str0 "uid_map" or "gid_map", str1 content */
    OP_NOTIFY = 5,          /* wake the process on the other end of the outer-init pair */
    OP_WAIT = 6,            /* wait for it */
    OP_PRCTL = 7,           /* arg0..arg3: option, arg2, arg3, arg4 */
    OP_SETSID = 8,          /* */
    OP_UMASK = 9,           /* arg0 */
    OP_UNSHARE = 10,        /* arg0 flags */
    OP_OPEN_PROC = 11,      /* slot */
    OP_ZERO_CLOCKS = 12,    /* slot of a procfs: monotonic and boot time start near zero in the new time namespace */
    OP_MOUNT = 13,          /* str0 source, str1 target, str2 type, str3 data, arg0 flags */
    OP_MKDIR = 14,          /* str0 path, arg0 mode, arg1 uid, arg2 gid */
    OP_SYMLINK = 15,        /* str0 target, str1 path */
    OP_MKNOD = 16,          /* str0 path, arg0 mode, arg1 device */
    OP_SEND_TREE = 17,      /* str0 path, arg0 mount attributes: a clone of its mount lies on it and goes to the launcher */
    OP_CHDIR = 18,          /* str0 */
    OP_PIVOT_ROOT = 19,     /* the working directory becomes the root; the old root is detached */
    OP_LOOPBACK_UP = 20,    /* */
    OP_SETHOSTNAME = 21,    /* str0 */
    OP_SETDOMAINNAME = 22,  /* str0 */
    OP_JOIN_KEYRING = 23,   /* a new session keyring */
    OP_SETPRIORITY = 24,    /* arg0 nice value */
    OP_LANDLOCK_CREATE = 26,   /* slot, arg0 handled file rights, arg1 TCP rights, arg2 scopes, arg3 size of the attribute */
    OP_LANDLOCK_ADD = 27,      /* slot, str0 path, arg0 allowed file rights */
    OP_LANDLOCK_RESTRICT = 28, /* slot, arg0 flags */
    OP_WRITE_AT = 29,       /* slot, str0 path below it, str1 content */
    OP_SETGROUPS = 30,      /* no supplementary groups */
    OP_SETRESGID = 31,      /* arg0 */
    OP_SETRESUID = 32,      /* arg0 */
    OP_DROP_BOUNDING = 34,  /* arg0 last capability */
    OP_CAPSET = 35,         /* arg0 effective and permitted, arg1 inheritable */
    OP_RAISE_AMBIENT = 36,  /* arg0 last capability */
    OP_SECCOMP = 37,        /* str0 program, len bytes, arg0 flags; a listener goes to the launcher with READY */
    OP_SETRLIMIT = 38,      /* arg0 resource, arg1 soft, arg2 hard */
    OP_STDIN = 39,          /* slot becomes descriptor 0 */
    OP_CLOSE_RANGE = 40,    /* everything above the standard three and the control socket */
    OP_COPY_FILE = 42,      /* slot, str0 path below the working directory, arg0 mode, arg1 offset, arg2 size */
    OP_EXEC = 43,           /* str0 path */
    OP_FAIL = 44,           /* arg0 errno, 0: die: fault injection */
    OP_SIGNALS = 45,        /* default dispositions, empty mask */
    OP_LEAK_ROOT = 46,      /* a descriptor of the host's root stays open as 3: `--without mount` */
};

/* One step: 64 bytes. Strings are offsets into the list, 0 is none; each ends in NUL. */
struct step {
    uint16_t op;
    uint8_t phase;
    uint8_t slot;
    uint32_t len;
    uint64_t arg[4];
    uint32_t str[4];
    uint64_t reserved;
};

struct list {
    uint32_t magic;
    uint32_t version;
    uint32_t size;    /* of all of it; its last byte is 0 */
    uint32_t steps;   /* struct step[steps] follows */
    uint32_t argc;    /* job list only */
    uint32_t argv;    /* offset of argc string offsets */
    uint32_t envc;
    uint32_t envp;
};

/* What the launcher sends to the spawner for each sandbox, beside one byte: descriptors in this order. */
enum spawn_part {
    SPAWN_STDIN = 0,   /* 0..2: the payload's 0, 1, 2 */
    SPAWN_SLOTS = 3,   /* SLOT_CONTROL, SLOT_LEAF, SLOT_BUILD, and SLOT_ATTACH as many as there are */
    SPAWN_PARTS_MAX = 10,
};

/* What init tells the launcher, each once. The spawner sends OUTER, PID 1 sends TREE, HELD and ENDED, the payload's process READY, STARTED and NOEXEC, in this
 * order. FAILED may stand in for any of them, and is then its sender's last. */
enum report_kind {
    REPORT_OUTER = 9,   /* with outer's pidfd */
    REPORT_PIDFD = 1,   /* outer: with PID 1's pidfd */
    REPORT_TREE = 2,    /* with the view of the write layer */
    REPORT_READY = 3,   /* without rights, waits for its job; with the filter's listener, if it has one */
    REPORT_HELD = 4,    /* without rights, waits for the payload's end */
    REPORT_STARTED = 5, /* execve comes next */
    REPORT_NOEXEC = 6,  /* every EXEC candidate failed: error */
    REPORT_ENDED = 7,   /* the main process ended */
    REPORT_FAILED = 8,  /* a step failed: phase, step, error */
};

struct report {
    uint32_t kind;
    uint32_t phase;
    uint32_t step;    /* index in its list */
    int32_t error;    /* errno */
    uint32_t status;  /* wait status of the main process */
    uint32_t alone;   /* nothing else was left when the main process had ended */
    uint64_t exec_ns; /* monotonic, host's clock */
    uint64_t end_ns;
    uint64_t payload_cpu_ns; /* used by the payload's process before execve */
    uint64_t init_cpu_ns;    /* used by PID 1 until this report */
};

_Static_assert(sizeof(struct step) == 64, "steps are fixed-size records");
_Static_assert(sizeof(struct list) == 32, "list header");
_Static_assert(sizeof(struct report) == 56, "report");

#endif
