/* Reserves 50 MiB and touches every page of the first N MiB of it; N is its argument. */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MIB = 1024 * 1024, RESERVED_MIB = 50 };

int main(int argc, char **argv) {
    long touched_mib = argc > 1 ? atol(argv[1]) : 0;
    if (touched_mib < 0 || touched_mib > RESERVED_MIB)
        return 2;
    char *memory = mmap(NULL, RESERVED_MIB * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return 1;
    /* Huge pages would round the last one up. */
    madvise(memory, RESERVED_MIB * MIB, MADV_NOHUGEPAGE);
    for (long offset = 0; offset < touched_mib * MIB; offset += sysconf(_SC_PAGESIZE))
        memory[offset] = 1;
    return 0;
}
