/* The smallest honest program with a C library: linked statically, glibc's is about 760 KB. */
#include <stdio.h>

int main(void) {
    puts("hello");
    return 0;
}
