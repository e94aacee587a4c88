#ifndef SANDBOXD_INIT_H
#define SANDBOXD_INIT_H

#include <sys/types.h>

#include "wire.h"

/* A list as mapped from its sealed memfd, checked once by map_list(). */
struct image {
    const char *base;
    const struct list *head;
    const struct step *steps;
};

struct sandbox {
    int slot[SLOT_COUNT];
    int peer;    /* outer's and PID 1's end of the pair between them */
    int listener; /* payload: of its filter's notifications; else -1 */
    int pidfd;   /* outer: PID 1 */
    int leak;    /* `--without mount`: the host's root; else 0 */
    pid_t pid;   /* outer: PID 1 as seen from the host */
    uint32_t at; /* index of the step being executed */
    uint64_t clock_offset_ns; /* what the payload's monotonic clock is behind the host's */
};

/* init.c */
int send_report(int socket, const struct report *, int fd);
int clone_init(struct sandbox *, uint64_t flags);
int attach_cgroup(struct sandbox *, int fd);
int write_id_map(struct sandbox *, const char *name, const char *content);
int await_peer(struct sandbox *);
const char *text(const struct image *, uint32_t offset);

/* steps.c */
int execute(struct sandbox *, const struct image *, const struct step *);

#endif
