/* Books of parts of the layers as one. */
#include <stdlib.h>

#include "calib/merge.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/outfile.h"
#include "tools/commands.h"
#include "tools/input.h"

typedef struct merge_args {
    kvb_common_args common;
    kvb_strings books;
    const char *output;
} merge_args;

static const kvb_flag flags[] = {
    {"--output", KVB_FLAG_STRING, "FILE", "the book to write (.kvb)", .offset = offsetof(merge_args, output), .letter = "-o",
     .required = true},
};

static const kvb_command_spec spec = {
    .name = "merge",
    .operands = "PART.kvb...",
    .summary = "Join books of parts of the layers into one",
    .about = "The parts are what `kvbook train --layers A-B` wrote from one capture with the same recipe, seed and flags, in any\n"
             "order. The result has the bytes of a book trained whole. Exits with 6 where they are of different jobs, where a\n"
             "layer is in two of them, or in none. Captures of parts of a text need no merging: `kvbook train` takes several.",
    .args_size = sizeof(merge_args),
    .operands_offset = offsetof(merge_args, books),
    .group = {{"Flags", flags, 1, 0}, KVB_GROUP(common, "Common flags", merge_args, common)},
    .groups = 2,
};

static kvb_status merge(const merge_args *a, kvb_book **book, kvb_progress *p, kvb_error *err)
{
    uint8_t *image = NULL;
    size_t size = 0;
    char text[32];
    kvb_status status = KVB_OK;
    for (size_t i = 0; status == KVB_OK && i < a->books.count; i++)
        status = kvb_book_open_with(a->books.items[i], KVB_OPEN_VERIFIED, &book[i], err);
    if (status == KVB_OK)
        status = kvb_merge_books(book, a->books.items, a->books.count, &image, &size, err);
    if (status == KVB_OK)
        status = kvb_write_file(a->output, image, size, err);
    if (status == KVB_OK)
        kvb_say(p, "wrote %s: %s, of %zu parts", a->output, kvb_size_text(size, text), a->books.count);
    free(image);
    return status;
}

static kvb_status run(const void *args, kvb_progress *p, kvb_error *err)
{
    const merge_args *a = args;
    if (a->books.count == 0)
        return kvb_fail(err, KVB_E_USAGE, "merge", "found no books, expected the parts and -o: kvbook merge A.kvb B.kvb -o WHOLE.kvb");
    kvb_status status = kvb_check_output(a->output, a->books.items, a->books.count, err);
    if (status != KVB_OK)
        return status;
    kvb_book **book = kvb_alloc_zeroed(a->books.count, sizeof *book);
    if (book == NULL)
        return kvb_fail_memory(err, "merge");
    status = merge(a, book, p, err);
    for (size_t i = 0; i < a->books.count; i++)
        kvb_book_close(book[i]);
    free(book);
    return status;
}

static const merge_args defaults = {0};
const kvb_command kvb_merge_command = {&spec, &defaults, run};
