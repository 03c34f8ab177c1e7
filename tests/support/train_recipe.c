#include "tests/support/train_recipe.h"

#include <stdlib.h>
#include <string.h>

#include "tests/support/cm.h"

kvb_status train_recipe(const kvb_capture *capture, const char *json, uint32_t threads, kvb_book **book, kvb_train_report *report,
                        kvb_error *err)
{
    kvb_recipe r;
    kvb_train_options o;
    uint8_t *image = NULL;
    size_t size;
    *book = NULL;
    if (kvb_recipe_parse(json, strlen(json), "test.json", &r, err) != KVB_OK)
        fail_msg("%s: %s", err->where, err->message);
    kvb_train_options_init(&o);
    o.threads = threads;
    kvb_status status = kvb_train_book(capture, &r, &o, &image, &size, report, err);
    if (status == KVB_OK)
        assert_int_equal(kvb_book_open_memory(image, size, "book", book, err), KVB_OK);
    kvb_recipe_free(&r);
    free(image);
    return status;
}
