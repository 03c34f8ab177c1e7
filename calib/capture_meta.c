#include "calib/capture_meta.h"

#include <string.h>

#include "format/base/path.h"

void kvb_meta_put_model(kvb_json_writer *w, const kvb_model *model)
{
    const kvb_model_info *info = kvb_model_get_info(model);
    kvb_json_begin_object(w, "model");
    kvb_json_put_string(w, "name", info->name);
    kvb_json_put_string(w, "architecture", info->architecture);
    kvb_json_put_sha256(w, "meta_sha256", info->meta_sha256);
    kvb_json_put_sha256(w, "weights_sha256", info->weights_sha256);
    kvb_json_put_u64(w, "layers", info->layers);
    kvb_json_put_u64(w, "embedding", info->embedding);
    kvb_json_put_u64(w, "vocab", info->vocab);
    kvb_json_put_u64(w, "context", info->context);
    kvb_json_end_object(w);
    kvb_json_begin_object(w, "tokenizer");
    kvb_json_put_sha256(w, "sha256", kvb_tokenizer_id(kvb_model_tokenizer(model)));
    kvb_json_end_object(w);
}

void kvb_meta_put_text(kvb_json_writer *w, const kvb_text *text, const kvb_capture_options *options, uint64_t chunks)
{
    kvb_json_begin_object(w, "text");
    kvb_json_begin_array(w, "sources");
    for (size_t i = 0; i < text->source_count; i++) {
        kvb_json_begin_object(w, NULL);
        kvb_json_put_string(w, "name", kvb_base_name(text->sources[i].path));
        kvb_json_put_sha256(w, "sha256", text->sources[i].sha256);
        kvb_json_put_u64(w, "bytes", text->sources[i].bytes);
        kvb_json_put_u64(w, "tokens", text->sources[i].tokens);
        kvb_json_end_object(w);
    }
    kvb_json_end_array(w);
    kvb_json_put_u64(w, "ctx", options->ctx);
    kvb_json_put_u64(w, "skip", options->skip);
    kvb_json_put_u64(w, "chunks", chunks);
    if (options->bos >= 0)
        kvb_json_put_u64(w, "bos", (uint64_t)options->bos);
    else
        kvb_json_put_null(w, "bos");
    kvb_json_end_object(w);
}

char *kvb_capture_meta_write(const kvb_model *model, const kvb_text *text, const kvb_capture_options *options,
                             uint64_t chunks, const kvb_capture_counts *counts)
{
    kvb_json_writer w = {.compact = true};
    kvb_json_begin_object(&w, NULL);
    kvb_json_put_string(&w, "tool", "kvbook");
    kvb_json_put_string(&w, "version", KVB_VERSION);
    kvb_meta_put_model(&w, model);
    kvb_meta_put_text(&w, text, options, chunks);
    kvb_json_begin_object(&w, "capture");
    kvb_json_put_u64(&w, "rows", counts->rows);
    kvb_json_put_u64(&w, "seed", options->seed);
    kvb_json_put_u64(&w, "saturated", counts->saturated);
    kvb_json_put_u64(&w, "quarantined", counts->quarantined);
    kvb_json_put_u64(&w, "bad_queries", counts->bad_queries);
    kvb_json_end_object(&w);
    kvb_json_end_object(&w);
    const char *json = kvb_json_writer_text(&w);
    char *copy = json != NULL ? strdup(json) : NULL;
    kvb_json_writer_free(&w);
    return copy;
}
