/* The recipe parser: any text, alone and inside a recipe that is right otherwise. What parses must be a recipe that can be asked. */
#include <stdlib.h>
#include <string.h>

#include "calib/recipe.h"
#include "tests/fuzz/fuzz.h"

static volatile double sink; /* so that no question below is optimised away */

static void parse(const char *text, size_t size)
{
    kvb_recipe r;
    kvb_error err;
    if (kvb_recipe_parse(text, size, "fuzz.json", &r, &err) != KVB_OK)
        return;
    sink += (double)strlen(r.name) + kvb_recipe_nominal_bits(&r) + kvb_recipe_has_fine(&r) + kvb_recipe_wants_gradients(&r) + kvb_recipe_wants_queries(&r);
    for (uint32_t kind = 0; kind < 2; kind++)
        sink += kvb_recipe_scaled_bits(&r.kind[kind], 3, 32);
    static const double bits[] = {0.375, 1.0, 2.0, 4.0, 7.0};
    for (size_t i = 0; i < sizeof bits / sizeof *bits; i++)
        if (kvb_recipe_set_bits(&r, bits[i], &err) == KVB_OK)
            sink += kvb_recipe_nominal_bits(&r);
    if (kvb_recipe_set_shape(&r, KVB_KEY, "4x16", &err) == KVB_OK && kvb_recipe_allocate(&r, &err) == KVB_OK)
        sink += r.ladder_count;
    kvb_recipe_free(&r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char before[] = "{\"schema\":1,\"name\":\"fuzz\",", after[] = "}";
    parse((const char *)data, size);
    char *wrapped = malloc(sizeof before + size + sizeof after);
    if (wrapped == NULL)
        return 0;
    memcpy(wrapped, before, sizeof before - 1);
    memcpy(wrapped + sizeof before - 1, data, size);
    memcpy(wrapped + sizeof before - 1 + size, after, sizeof after - 1);
    parse(wrapped, sizeof before - 1 + size + sizeof after - 1);
    free(wrapped);
    return 0;
}
