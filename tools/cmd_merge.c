/* Books of parts of the layers as one, or captures of parts of a text. */
#include <stdlib.h>

#include "calib/merge.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/outfile.h"
#include "tools/captures.h"
#include "tools/commands.h"
#include "tools/input.h"
#include "tools/verify_capture.h"

typedef struct merge_args {
    kvb_common_args common;
    kvb_strings parts;
    const char *output;
} merge_args;

static const kvb_flag flags[] = {
    {"--output", KVB_FLAG_STRING, "FILE", "the book (.kvb) or capture (.kvc) to write", .offset = offsetof(merge_args, output), .letter = "-o",
     .required = true},
};

static const kvb_command_spec spec = {
    .name = "merge",
    .operands = "PART...",
    .summary = "Join books of parts of the layers, or captures of parts of a text, into one",
    .about = "Books are what `kvbook train --layers A-B` wrote from one capture with the same recipe, seed and flags, in any\n"
             "order. The result has the bytes of a book trained whole. Exits with 6 where they are of different jobs, where a\n"
             "layer is in two of them, or in none.\n\n"
             "Captures are of chunks that follow one another (`--shard`, or `--skip` and `--chunks`), with the same model, text\n"
             "and seed, in any order. The result has the bytes of one capture of all chunks. `kvbook train` takes several as\n"
             "they are, too.",
    .args_size = sizeof(merge_args),
    .operands_offset = offsetof(merge_args, parts),
    .group = {{"Flags", flags, 1, 0}, KVB_GROUP(common, "Common flags", merge_args, common)},
    .groups = 2,
};

static kvb_status join_books(const merge_args *a, kvb_book **book, kvb_progress *p, kvb_error *err)
{
    uint8_t *image = NULL;
    size_t size = 0;
    char text[32];
    kvb_status status = KVB_OK;
    for (size_t i = 0; status == KVB_OK && i < a->parts.count; i++)
        status = kvb_book_open_with(a->parts.items[i], KVB_OPEN_VERIFIED, &book[i], err);
    if (status == KVB_OK)
        status = kvb_merge_books(book, a->parts.items, a->parts.count, &image, &size, err);
    if (status == KVB_OK)
        status = kvb_write_file(a->output, image, size, err);
    if (status == KVB_OK)
        kvb_say(p, "wrote %s: %s, of %zu parts", a->output, kvb_size_text(size, text), a->parts.count);
    free(image);
    return status;
}

static kvb_status merge_books(const merge_args *a, kvb_progress *p, kvb_error *err)
{
    kvb_book **book = kvb_alloc_zeroed(a->parts.count, sizeof *book);
    if (book == NULL)
        return kvb_fail_memory(err, "merge");
    kvb_status status = join_books(a, book, p, err);
    for (size_t i = 0; i < a->parts.count; i++)
        kvb_book_close(book[i]);
    free(book);
    return status;
}

static kvb_status merge_captures(const merge_args *a, kvb_progress *p, kvb_error *err)
{
    kvb_opened_captures captures = {0};
    kvb_status status = kvb_captures_open(&a->parts, &captures, err);
    if (status == KVB_OK)
        status = kvb_capture_write(kvb_captures_view(&captures), a->output, kvb_progress_report, p, err);
    if (status == KVB_OK)
        kvb_say(p, "wrote %s: %llu rows, of %zu parts", a->output, (unsigned long long)kvb_captures_view(&captures)->rows, a->parts.count);
    kvb_captures_close(&captures);
    return status;
}

static kvb_status run(const void *args, kvb_progress *p, kvb_error *err)
{
    const merge_args *a = args;
    size_t captures = 0;
    if (a->parts.count == 0)
        return kvb_fail(err, KVB_E_USAGE, "merge", "found nothing, expected the parts and -o: kvbook merge A.kvb B.kvb -o WHOLE.kvb");
    kvb_status status = kvb_check_output(a->output, a->parts.items, a->parts.count, err);
    for (size_t i = 0; i < a->parts.count; i++)
        captures += kvb_is_capture_file(a->parts.items[i]);
    if (status == KVB_OK && captures > 0 && captures < a->parts.count)
        return kvb_fail(err, KVB_E_USAGE, "merge", "found captures (.kvc) and other files together, expected books or captures");
    if (status != KVB_OK)
        return status;
    return captures > 0 ? merge_captures(a, p, err) : merge_books(a, p, err);
}

static const merge_args defaults = {0};
const kvb_command kvb_merge_command = {&spec, &defaults, run};
