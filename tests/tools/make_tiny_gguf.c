/* make_tiny_gguf OUT.gguf [SEED [UNTIED [ARCHITECTURE]]]: writes the tiny model of tests/support/tiny_gguf.h for
 * command-line tests, a Llama or of another architecture by its name in GGUF. */
#include <stdio.h>
#include <stdlib.h>

#include "tests/support/tiny_gguf.h"

int main(int argc, char **argv)
{
    tiny_gguf t = argc > 4 ? tiny_gguf_of(argv[4]) : tiny_gguf_default();
    if (argc < 2 || argc > 5) {
        fprintf(stderr, "usage: %s OUT.gguf [SEED [UNTIED [ARCHITECTURE]]]\n", argv[0]);
        return 2;
    }
    if (argc > 2)
        t.seed = strtoull(argv[2], NULL, 10);
    t.untied = argc > 3 && argv[3][0] == '1';
    if (tiny_gguf_write(&t, argv[1]) == 0)
        return 0;
    perror(argv[1]);
    return 4;
}
