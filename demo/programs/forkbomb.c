/* Doubles itself as often as it is let, then says what it met. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(void)
{
    for (int i = 0; i < 100000; i++) {
        pid_t child = fork();
        if (child == 0)
            for (;;) {
                if (fork() < 0) pause();
            }
        if (child < 0) {
            printf("fork %d: %s\n", i + 1, strerror(errno));
            return 1;
        }
    }
    puts("nobody stopped me");
    return 0;
}
