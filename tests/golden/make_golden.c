/* Writes the golden books that the writer makes: `make golden`. The argument is the folder. */
#include <stdio.h>
#include <stdlib.h>

#include "format/base/outfile.h"
#include "tests/support/sample_book.h"

static kvb_status write_book(const kvb_book_spec *spec, const char *folder, const char *name, kvb_error *err)
{
    char path[512];
    uint8_t *image;
    size_t size;
    kvb_outfile *out;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    kvb_status status = kvb_book_build(spec, &image, &size, err);
    if (status != KVB_OK)
        return status;
    status = kvb_outfile_open(path, &out, err);
    if (status == KVB_OK) {
        status = kvb_outfile_write(out, image, size, err);
        if (status == KVB_OK)
            status = kvb_outfile_commit(out, err);
        else
            kvb_outfile_abandon(out);
    }
    free(image);
    return status;
}

int main(int argc, char **argv)
{
    static sample_book book;
    kvb_error err;
    if (argc != 2) {
        fprintf(stderr, "usage: make_golden FOLDER\n");
        return 2;
    }
    sample_minimal(&book);
    kvb_status status = write_book(&book.spec, argv[1], "minimal.kvb", &err);
    sample_full(&book);
    if (status == KVB_OK)
        status = write_book(&book.spec, argv[1], "full.kvb", &err);
    book.spec.compress = true;
    if (status == KVB_OK)
        status = write_book(&book.spec, argv[1], "packed.kvb", &err);
    sample_additive(&book);
    if (status == KVB_OK)
        status = write_book(&book.spec, argv[1], "additive.kvb", &err);
    sample_fine(&book);
    if (status == KVB_OK)
        status = write_book(&book.spec, argv[1], "fine.kvb", &err);
    sample_scaled(&book);
    if (status == KVB_OK)
        status = write_book(&book.spec, argv[1], "scaled.kvb", &err);
    if (status != KVB_OK)
        fprintf(stderr, "%s: %s\n", err.where, err.message);
    return (int)status;
}
