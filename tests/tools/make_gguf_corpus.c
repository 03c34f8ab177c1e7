/* make_gguf_corpus FOLDER: writes every file of tests/support/gguf_cases.h, the seeds of the GGUF fuzzer. Run from the
 * repository's root with tests/fuzz/corpus/gguf after a change of the cases. */
#include <stdio.h>
#include <stdlib.h>

#include "tests/support/gguf_cases.h"
#include "tests/support/scratch.h"

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    for (size_t i = 0; i < gguf_case_count; i++) {
        char path[512], name[64];
        size_t size;
        uint8_t *bytes = gguf_cases[i].make(&size);
        snprintf(name, sizeof name, "%s.gguf", gguf_cases[i].name);
        if (scratch_write(scratch_path(argv[1], name, path), bytes, size) != 0) {
            perror(path);
            return 4;
        }
        free(bytes);
    }
    return 0;
}
