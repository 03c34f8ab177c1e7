#include "tests/support/tiny_run.h"

#include <stdlib.h>
#include <string.h>

#include "calib/train.h"
#include "format/base/checked.h"
#include "format/base/rng.h"
#include "tests/support/cm.h"
#include "tests/support/scratch.h"
#include "tests/support/tiny_llama2c.h"

bool tiny_run_open(tiny_run *run, uint32_t ctx, uint32_t chunks)
{
    char path[512], tokenizer[512];
    const tiny_llama2c tiny = tiny_llama2c_default();
    *run = (tiny_run){.folder = scratch_create()};
    scratch_path(run->folder, "tiny.bin", path);
    scratch_path(run->folder, "tokenizer.bin", tokenizer);
    const kvb_model_options options = {.tokenizer_path = tokenizer};
    if (!tiny_llama2c_write(&tiny, path, tokenizer) || kvb_model_open(path, &options, &run->model, NULL) != KVB_OK)
        return false;
    run->source = (kvb_text_source){.path = "folder/words.txt", .bytes = 9, .tokens = 7};
    run->text = (kvb_text){.sources = &run->source, .source_count = 1, .id_count = ctx * chunks + 5};
    run->text.ids = kvb_alloc_array(run->text.id_count, sizeof *run->text.ids);
    for (size_t i = 0; run->text.ids != NULL && i < run->text.id_count; i++)
        run->text.ids[i] = (uint32_t)kvb_rng_below(3, i, tiny.vocab);
    return run->text.ids != NULL;
}

void tiny_run_close(tiny_run *run)
{
    kvb_model_close(run->model);
    free(run->text.ids);
    scratch_remove(run->folder);
}

kvb_book *tiny_run_calibrate(const tiny_run *run, const char *recipe_json, uint32_t ctx, uint32_t chunks)
{
    kvb_recipe recipe = {0};
    kvb_train_options options;
    kvb_capture_store *store = NULL;
    kvb_book *book = NULL;
    uint8_t *image = NULL;
    size_t size;
    kvb_error err = {0};
    const kvb_capture_options capture = {.ctx = ctx, .chunks = chunks, .bos = -1, .seed = 1, .stop_on_nan = true};
    kvb_train_options_init(&options);
    if (kvb_recipe_parse(recipe_json, strlen(recipe_json), "t.json", &recipe, &err) != KVB_OK ||
        kvb_capture_run(run->model, &run->text, &capture, &store, &err) != KVB_OK ||
        kvb_train_book(kvb_capture_view(store), &recipe, &options, &image, &size, NULL, &err) != KVB_OK ||
        kvb_book_open_memory(image, size, "calibrated", &book, &err) != KVB_OK)
        print_error("%s: %s\n", err.where, err.message);
    free(image);
    kvb_capture_close(store);
    kvb_recipe_free(&recipe);
    return book;
}
