/* Calibration and evaluation text: files to one stream of tokens to chunks. */
#ifndef KVB_MODEL_TEXT_H
#define KVB_MODEL_TEXT_H

#include "model/tokenizer.h"

typedef struct kvb_text_source {
    const char *path;
    uint8_t sha256[32]; /* of the file's bytes */
    uint64_t bytes;
    uint64_t tokens; /* 0 until tokenised */
} kvb_text_source;

typedef struct kvb_text {
    kvb_text_source *sources;
    size_t source_count;
    uint32_t *ids; /* all sources, in order, each tokenised on its own */
    size_t id_count;
} kvb_text;

/* Reads the files in order; a path ending in .jsonl contributes the field "text" of each line, joined by two newlines
 * (a line that is not a JSON object with that field: KVB_E_FORMAT with the line's number). Empty text: KVB_E_FORMAT. */
kvb_status kvb_text_load(const kvb_tokenizer *t, const char *const *paths, size_t count, kvb_text *text,
                         kvb_error *err);
void kvb_text_free(kvb_text *text);

/* Cuts the stream into consecutive chunks of `ctx` tokens. Chunk c is ids[(skip+c)*ctx ...]; a last partial one is
 * dropped. `*chunks`: how many there are after `skip`, at most `wanted` (0 = all). With bos >= 0 the caller overwrites
 * each chunk's first token by it. KVB_E_FORMAT where not one whole chunk is left: both numbers named. */
kvb_status kvb_text_chunks(const kvb_text *text, uint32_t ctx, uint64_t skip, uint64_t wanted, uint64_t *chunks,
                           kvb_error *err);
/* Copies chunk c (after skip) to out[ctx]. */
void kvb_text_chunk(const kvb_text *text, uint32_t ctx, uint64_t skip, uint64_t c, int32_t bos, uint32_t *out);

#endif
