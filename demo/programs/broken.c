#include <stdio.h>

int main(void)
{
    printf("a semicolon is missing here\n")
    return 0;
}
