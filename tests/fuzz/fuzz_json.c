/* The JSON reader and writer: what parses is written, parses again and is then written the same. */
#include <stdlib.h>
#include <string.h>

#include "format/base/json.h"
#include "tests/fuzz/fuzz.h"

static void rewrite(const kvb_json_doc *doc, bool compact, kvb_json_writer *w)
{
    *w = (kvb_json_writer){.compact = compact};
    kvb_json_put_value(w, NULL, kvb_json_root(doc));
    if (kvb_json_writer_text(w) == NULL)
        abort();
}

static void check_again(const kvb_json_doc *doc, bool compact)
{
    kvb_json_writer first, second;
    kvb_json_doc *again;
    rewrite(doc, compact, &first);
    if (kvb_json_parse(first.text, first.size, "again", &again, NULL) != KVB_OK)
        abort();
    rewrite(again, compact, &second);
    if (first.size != second.size || memcmp(first.text, second.text, first.size) != 0)
        abort();
    kvb_json_free(again);
    kvb_json_writer_free(&first);
    kvb_json_writer_free(&second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    kvb_json_doc *doc;
    kvb_error err;
    if (kvb_json_parse((const char *)data, size, "fuzz", &doc, &err) != KVB_OK)
        return 0;
    uint64_t number;
    kvb_json_u64(kvb_json_root(doc), &number);
    check_again(doc, false);
    check_again(doc, true);
    kvb_json_free(doc);
    return 0;
}
