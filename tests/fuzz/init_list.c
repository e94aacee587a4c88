/* Fuzzes init's reading of a step list: init.c as it is, with its mapping on the heap, where the sanitizers see its ends.
 * usage: init_list ROUNDS SEED LIST...    Each round changes a list a little, and reads all that a step could make init read.
 */
#include <stddef.h>
#include <stdlib.h>
#include <sys/types.h>

void *fuzz_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset);
#define mmap fuzz_mmap
#define main init_main
#include "init.c"
#undef main
#undef mmap

static const void *mapped;

void *fuzz_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
    (void)at, (void)protection, (void)flags;
    char *copy = malloc(size);
    if (!copy || pread(fd, copy, size, offset) != (ssize_t)size)
        abort();
    mapped = copy;
    return copy;
}

static unsigned long sum; /* what is read must be used, or the compiler leaves it out */

int execute(struct sandbox *s, const struct image *in, const struct step *st)
{
    sum += (unsigned long)s->slot[st->slot];
    for (int k = 0; k < 4; k++)
        if (text(in, st->str[k]))
            sum += strlen(text(in, st->str[k]));
    const char *data = text(in, st->str[0]);
    for (uint32_t i = 0; data && i < st->len; i++)
        sum += (unsigned char)data[i];
    return 0;
}

static uint64_t state;
static uint64_t next(void) /* xorshift64 */
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
}

static void change(unsigned char *list, size_t size)
{
    static const uint64_t odd[] = {0, 1, 2, 7, 0x7f, 0xff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, 0xfffffffffffffff8, ~0ull};
    for (uint64_t times = 1 + next() % 4; times; times--) {
        /* Mostly the head and the first steps, where every byte means something. */
        size_t at = next() % (next() % 4 ? (size < 2048 ? size : 2048) : size);
        size_t width = (size_t)1 << next() % 4;
        uint64_t value = next() % 3 ? odd[next() % (sizeof odd / sizeof *odd)] : next() % 3 ? next() % (2 * size) : next();
        if (at + width <= size)
            memcpy(list + at, &value, width);
    }
}

int main(int argc, char **argv)
{
    unsigned long rounds = strtoul(argv[1], NULL, 0), accepted = 0;
    state = strtoull(argv[2], NULL, 0) | 1;
    int fd = memfd_create("list", 0);
    for (unsigned long round = 0; round < rounds; round++) {
        int source = open(argv[3 + round % (unsigned long)(argc - 3)], O_RDONLY);
        off_t size = lseek(source, 0, SEEK_END);
        unsigned char *list = malloc((size_t)size);
        if (source < 0 || !list || pread(source, list, (size_t)size, 0) != size)
            abort();
        close(source);
        if (round >= (unsigned long)(argc - 3)) /* the first time as it is: it must be accepted */
            change(list, (size_t)size);
        if (next() % 8 == 0 && round >= (unsigned long)(argc - 3))
            size = (off_t)(next() % ((uint64_t)size + 1)); /* cut short */
        if (ftruncate(fd, 0) < 0 || pwrite(fd, list, (size_t)size, 0) != size)
            abort();
        free(list);
        struct image image;
        mapped = NULL;
        if (map_list(fd, &image) == 0) {
            struct sandbox s = {0};
            accepted++;
            for (uint32_t phase = 0; phase < 8; phase++)
                run_phase(&s, &image, phase);
            char **vector = pointers(&image, image.head->argv, image.head->argc);
            for (; vector && *vector; vector++)
                sum += strlen(*vector);
        } else if (round < (unsigned long)(argc - 3))
            return fprintf(stderr, "a true list is refused\n"), 1;
        free((void *)(uintptr_t)mapped);
    }
    printf("%lu %lu %lu\n", rounds, accepted, sum);
    return 0;
}
