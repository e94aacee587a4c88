/* Can one job see what another made? usage: meet [make|both] WHAT. As channel.py, by other calls of the kernel's. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { KEY = 0x5EED, PORT = 7778, MODE = 0666 };

static int at(int family, const void *address, socklen_t size, bool make)
{
    int fd = socket(family, SOCK_STREAM, 0);
    if (make)
        return bind(fd, address, size) < 0 ? -1 : listen(fd, 8);
    return connect(fd, address, size);
}

static int shm(bool make) { return shm_open("/meet", make ? O_CREAT | O_RDWR : O_RDONLY, MODE); }
static int memory(bool make) { return shmget(KEY, 4096, make ? IPC_CREAT | MODE : 0); }
static int semaphore(bool make) { return semget(KEY, 1, make ? IPC_CREAT | MODE : 0); }
static int messages(bool make) { return msgget(KEY, make ? IPC_CREAT | MODE : 0); }

static int memory_list(bool make)
{
    struct shm_info info = {0};
    if (make)
        return shmget(IPC_PRIVATE, 4096, MODE);
    return shmctl(0, SHM_INFO, (struct shmid_ds *)&info) >= 0 && info.used_ids > 0 ? 0 : -1;
}

static int messages_list(bool make)
{
    struct msginfo info = {0};
    if (make)
        return msgget(IPC_PRIVATE, MODE);
    return msgctl(0, MSG_INFO, (struct msqid_ds *)&info) >= 0 && info.msgpool > 0 ? 0 : -1;
}

static int abstract(bool make)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "\0meet"};
    return at(AF_UNIX, &address, offsetof(struct sockaddr_un, sun_path) + sizeof "\0meet" - 1, make);
}

static int loopback(bool make)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    return at(AF_INET, &address, sizeof address, make);
}

static int loopback_6(bool make)
{
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(PORT), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    return at(AF_INET6, &address, sizeof address, make);
}

int main(int argc, char **argv)
{
    static const struct { const char *name; int (*channel)(bool make); } channels[] = {
        {"shm", shm}, {"sysv-memory", memory}, {"sysv-semaphore", semaphore}, {"sysv-messages", messages},
        {"sysv-memory-list", memory_list}, {"sysv-messages-list", messages_list}, {"abstract", abstract},
        {"loopback", loopback}, {"loopback-6", loopback_6},
    };
    int (*channel)(bool) = NULL;
    const char *role = argc > 2 ? argv[1] : "look", *name = argv[argc - 1];
    for (size_t i = 0; i < sizeof channels / sizeof *channels; i++)
        if (!strcmp(name, channels[i].name))
            channel = channels[i].channel;
    if (!channel || (strcmp(role, "look") && channel(true) < 0))
        return perror(name), 1;
    if (!strcmp(role, "make")) {
        char byte;
        puts("ready");
        fflush(stdout);
        return read(0, &byte, 1) != 0;
    }
    if (!strcmp(role, "both") && fork() > 0) /* the other process looks */
        return wait(NULL) < 0;
    puts(channel(false) >= 0 ? "succeeded" : "held");
    return 0;
}
