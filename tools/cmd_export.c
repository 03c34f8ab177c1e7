/* Write a book as named arrays, for Python and other tools. */
#include <stdlib.h>

#include "format/base/fail.h"
#include "format/base/outfile.h"
#include "tools/commands.h"
#include "tools/exchange.h"
#include "tools/input.h"

typedef struct export_args {
    kvb_common_args common;
    kvb_strings files;
    const char *output;
} export_args;

static const kvb_flag flags[] = {
    {"--output", KVB_FLAG_STRING, "FILE", "write here: a name that ends in .safetensors, .npz or .gguf",
     .offset = offsetof(export_args, output), .letter = "-o", .required = true},
};

static const kvb_command_spec spec = {
    .name = "export",
    .operands = "BOOK.kvb",
    .summary = "Write a book as named arrays, for Python and other tools",
    .about = "A safetensors, NPZ or GGUF file with tables, levels, means and transforms as arrays (layers.L.heads.G.key.table and so\n"
             "on), and all other bytes of the book in one array more. `kvbook import` makes the same book of it, byte for byte.",
    .args_size = sizeof(export_args),
    .operands_offset = offsetof(export_args, files),
    .group = {{"Flags", flags, 1, 0}, KVB_GROUP(common, "Common flags", export_args, common)},
    .groups = 2,
};

static kvb_status run(const void *args, kvb_progress *p, kvb_error *err)
{
    const export_args *a = args;
    if (a->files.count != 1)
        return kvb_fail(err, KVB_E_USAGE, "export", "expected one file and -o: kvbook export BOOK.kvb -o X.safetensors");
    kvb_status checked = kvb_check_output(a->output, a->files.items, 1, err);
    if (checked != KVB_OK)
        return checked;
    kvb_book *book = NULL;
    kvb_status status = kvb_book_open_with(a->files.items[0], KVB_OPEN_VERIFIED, &book, err);
    if (status == KVB_OK)
        status = kvb_exchange_write(book, a->output, err);
    kvb_book_close(book);
    if (status == KVB_OK)
        kvb_say(p, "wrote %s", a->output);
    return status;
}

static const export_args defaults = {0};
const kvb_command kvb_export_command = {&spec, &defaults, run};
