/* Make the book again that was exported. */
#include <stdlib.h>

#include "format/base/fail.h"
#include "format/base/outfile.h"
#include "tools/commands.h"
#include "tools/exchange.h"
#include "tools/input.h"

typedef struct import_args {
    kvb_common_args common;
    kvb_strings files;
    const char *output;
} import_args;

static const kvb_flag flags[] = {
    {"--output", KVB_FLAG_STRING, "FILE", "write the book here", .offset = offsetof(import_args, output), .letter = "-o",
     .required = true},
};

static const kvb_command_spec spec = {
    .name = "import",
    .operands = "X.safetensors|X.npz|X.gguf",
    .summary = "Make the book again that was exported",
    .about = "Puts the arrays of an exported book back into their places and checks the whole as `kvbook verify` would: structure,\n"
             "checksums, identity. Arrays that were changed are refused.",
    .args_size = sizeof(import_args),
    .operands_offset = offsetof(import_args, files),
    .group = {{"Flags", flags, 1, 0}, KVB_GROUP(common, "Common flags", import_args, common)},
    .groups = 2,
};

static kvb_status run(const void *args, kvb_progress *p, kvb_error *err)
{
    const import_args *a = args;
    if (a->files.count != 1)
        return kvb_fail(err, KVB_E_USAGE, "import", "expected one file and -o: kvbook import X.safetensors -o BOOK.kvb");
    kvb_status checked = kvb_check_output(a->output, a->files.items, 1, err);
    if (checked != KVB_OK)
        return checked;
    uint8_t *image = NULL;
    size_t size = 0;
    kvb_status status = kvb_exchange_read(a->files.items[0], &image, &size, err);
    if (status == KVB_OK)
        status = kvb_write_file(a->output, image, size, err);
    free(image);
    if (status == KVB_OK)
        kvb_say(p, "wrote %s", a->output);
    return status;
}

static const import_args defaults = {0};
const kvb_command kvb_import_command = {&spec, &defaults, run};
