/* Fuzzes init's reading of a step list: init.c as it is, with its mapping on the heap, where the sanitizers see its ends.
 * What is accepted is read as far as any step could make init read; no step is executed.
 *
 * By clang's libFuzzer, which follows the coverage; or alone, by any compiler:
 * usage: init_list ROUNDS SEED LIST...    Prints for each LIST the errno that it is refused with, 0: accepted. Each round then
 * changes one of them a little.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

off_t fuzz_lseek(int fd, off_t offset, int whence);
void *fuzz_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset);
int without_check; /* a test numbers init's checks: this one is not made */
#define lseek fuzz_lseek
#define mmap fuzz_mmap
#define main init_main
#include "init.c"
#undef main
#undef mmap
#undef lseek

static const uint8_t *content;
static size_t content_size;
static void *mapped;

off_t fuzz_lseek(int fd, off_t offset, int whence)
{
    (void)fd, (void)offset, (void)whence;
    return (off_t)content_size;
}

void *fuzz_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
    (void)at, (void)protection, (void)flags, (void)fd, (void)offset;
    mapped = malloc(size);
    if (!mapped)
        abort();
    return memcpy(mapped, content, size);
}

static volatile unsigned long sum; /* what is read must be used, or the compiler leaves it out */

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

/* Both kinds of list are read as they are in init: a build list's steps; a job list's vectors, and then its steps. */
static int read_list(const uint8_t *data, size_t size)
{
    struct image image;
    struct sandbox s = {0};
    content = data, content_size = size, mapped = NULL;
    int error = map_list(-1, &image) < 0 ? errno : 0;
    if (!error) {
        for (uint32_t phase = PHASE_OUTER; phase <= PHASE_HOLD; phase++)
            run_phase(&s, &image, phase);
        char **vectors[] = {pointers(&image, image.head->argv, image.head->argc),
                            pointers(&image, image.head->envp, image.head->envc)};
        if (!vectors[0] || !vectors[1]) {
            error = EINVAL;
        } else {
            for (int v = 0; v < 2; v++)
                for (char **each = vectors[v]; *each; each++)
                    sum += strlen(*each);
            for (uint32_t phase = PHASE_JOB; phase <= PHASE_EXEC; phase++)
                run_phase(&s, &image, phase);
        }
    }
    free(mapped);
    return error;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    read_list(data, size);
    return 0;
}

/* Else nearly all would be refused by the first lines of map_list. */
static void mend(uint8_t *list, size_t size)
{
    struct list head;
    if (size < sizeof head)
        return;
    memcpy(&head, list, sizeof head);
    head.magic = WIRE_MAGIC, head.version = WIRE_VERSION, head.size = (uint32_t)size;
    memcpy(list, &head, sizeof head);
    list[size - 1] = 0;
}

#ifdef LIBFUZZER
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t size_max);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t size_max, unsigned seed)
{
    size = LLVMFuzzerMutate(data, size, size_max);
    if (seed % 8)
        mend(data, size);
    return size;
}
#else
static uint64_t state;
static uint64_t next(void) /* xorshift64 */
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
}

static size_t change(uint8_t *list, size_t size)
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
    if (next() % 8 == 0)
        size = next() % (size + 1); /* cut short */
    if (next() % 2)
        mend(list, size);
    return size;
}

int main(int argc, char **argv)
{
    unsigned long rounds = strtoul(argv[1], NULL, 0), accepted = 0, lists = (unsigned long)argc - 3;
    state = strtoull(argv[2], NULL, 0) | 1;
    if (getenv("WITHOUT_CHECK"))
        without_check = atoi(getenv("WITHOUT_CHECK"));
    for (unsigned long round = 0; round < lists + rounds; round++) {
        int fd = open(argv[3 + round % lists], O_RDONLY);
        off_t size = lseek(fd, 0, SEEK_END);
        uint8_t *list = malloc((size_t)size + 1);
        if (fd < 0 || !list || pread(fd, list, (size_t)size, 0) != size)
            abort();
        close(fd);
        if (round < lists)
            printf("%d\n", read_list(list, (size_t)size));
        else
            accepted += read_list(list, change(list, (size_t)size)) == 0;
        free(list);
    }
    printf("%lu\n", accepted);
    return 0;
}
#endif
