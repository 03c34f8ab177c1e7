/* What calibration keeps of a model's run over text: sampled keys (before RoPE) and values with their token weights, and
 * the queries' second moments. One form in memory, whether it came from a run or from a `.kvc` file (spec/kvc-1.md). */
#ifndef KVB_CALIB_CAPTURE_H
#define KVB_CALIB_CAPTURE_H

#include "calib/device.h"
#include "calib/query_sums.h"
#include "model/model.h"
#include "model/text.h"

/* One layer. n rows per KV head; row r of every head and layer is the same token, in text order. All NULL where the
 * layer is KVB_LAYER_UNSUPPORTED; weights and moments are NULL where the file that another engine wrote has none. A row
 * with both weights 0 was left out of its head for a NaN or infinity: its key and value are zeros, not data. */
typedef struct kvb_capture_layer {
    const uint16_t *keys;     /* [G][n][D] half floats, before RoPE */
    const uint16_t *values;   /* [G][n][D] */
    const float *weight_k;    /* [G][n] */
    const float *weight_v;    /* [G][n] */
    const float *moment_relative; /* [G][D][D]: mean of q q^T, q rotated back by a key position drawn from its past;
                                   * q as the model has it, not multiplied by attention_scale */
    const float *moment_post;     /* [G][D][D]: mean of q q^T as rotated */
    const kvb_exact *query_sums;  /* [2][G][D(D+1)/2]: the sums behind both moments, by which captures add up; may be NULL */
    const uint64_t *query_count;  /* [G] queries in them. NULL where query_sums is */
    const float *sensitivity[2];  /* by kvb_kind [G][D][D]: what an error in a key before RoPE, or a value, does to the
                                   * model's predictions (calib/sensitivity.h); NULL where it was not measured */
    const uint16_t *gradient[2];  /* by kvb_kind [G][n][D] half floats: of the text's loss with respect to the row's key before
                                   * RoPE, or its value (calib/text_gradient.h), times any one number; NULL without */
    const uint16_t *queries;      /* [H][query_rows][D] half floats, after RoPE, not multiplied by attention_scale; NULL without */
} kvb_capture_layer;

typedef struct kvb_capture {
    uint32_t layers;
    const kvb_layer *geometry;      /* [layers] */
    const kvb_capture_layer *layer; /* [layers] */
    uint64_t rows;                  /* n */
    const uint32_t *row_chunk;      /* [n] the chunk each row came from, ascending; skipped chunks count. May be NULL */
    const uint32_t *row_position;   /* [n] its position inside the chunk, ascending in it. NULL where row_chunk is */
    uint64_t query_rows;            /* the first rows, of one chunk, whose queries the layers have; 0: none */
    const char *meta_json;          /* what META of a book says of model, tokenizer and text */
    /* NULL where all layers are in memory or mapped; else layer[l] is filled by kvb_capture_load() and until its next call. */
    kvb_status (*load)(void *user, const uint32_t *layer, uint32_t count, kvb_error *err);
    void *load_user;
} kvb_capture;

/* Makes a layer ready to be read, and possibly no other: of the list the one at this process's rank in its team (calib/team.h), if it
 * is so long; the only one for a process alone. A team's processes call it together, with the same list. Not thread-safe. */
static inline kvb_status kvb_capture_load(const kvb_capture *c, const uint32_t *layer, uint32_t count, kvb_error *err)
{
    return c->load != NULL ? c->load(c->load_user, layer, count, err) : KVB_OK;
}

typedef struct kvb_capture_options {
    uint32_t ctx;
    uint64_t skip, chunks;
    int32_t bos;          /* token put first in each chunk, or -1 */
    uint64_t seed;        /* of sampled rows and drawn key positions */
    uint64_t max_rows;    /* rows kept at most (0: all): the same number from every chunk, positions drawn by seed */
    uint64_t sensitivity_chunks; /* the first so many chunks measure sensitivities; 0: none are captured */
    bool queries;         /* whether the queries of the first chunk's rows are captured */
    bool gradients;       /* whether each row's gradients are captured, by a backward pass of every chunk */
    uint64_t whole_chunks; /* of the run that `chunks` are the first part of: sensitivities are measured on its first ones. 0: chunks */
    bool stop_on_nan;     /* a NaN or infinity in K, V or a weight ends the run with KVB_E_CHECK */
    kvb_progress_fn progress;
    void *progress_user;
    kvb_device device;    /* where the forward pass runs; on a GPU progress counts layers, not chunks */
} kvb_capture_options;

/* First chunk of part i of n; that of part n is `chunks`. */
static inline uint64_t kvb_capture_part_begin(uint64_t chunks, uint64_t i, uint64_t n)
{
    return chunks / n * i + chunks % n * i / n;
}
/* Turns the options of a run over `chunks` chunks, as many as there are, into those of part i of n, i from 0: all parts, joined, are
 * that run's capture. The first part measures the sensitivities of all, and has the queries. KVB_E_USAGE where there are fewer chunks than parts. */
kvb_status kvb_capture_part(kvb_capture_options *options, uint64_t i, uint64_t n, kvb_error *err);

/* Owns a capture made by a run or read from a file. */
typedef struct kvb_capture_store kvb_capture_store;
kvb_status kvb_capture_run(const kvb_model *model, const kvb_text *text, const kvb_capture_options *options,
                           kvb_capture_store **store, kvb_error *err);
/* The same straight into a file, one chunk in memory at a time. */
kvb_status kvb_capture_run_to_file(const kvb_model *model, const kvb_text *text, const kvb_capture_options *options,
                                   const char *path, kvb_error *err);
kvb_status kvb_capture_open(const char *path, kvb_capture_store **store, kvb_error *err);
/* The same over bytes that outlive the store, aligned to 4; `name` stands for the path in errors. */
kvb_status kvb_capture_open_memory(const void *bytes, size_t size, const char *name, kvb_capture_store **store,
                                   kvb_error *err);
/* Captures of parts of one text, in any order, as the capture of the whole; one layer is in memory at a time. `name` stands for each
 * in errors; the parts, 1 or more, must outlive the store. KVB_E_MISMATCH where they are not of one run (model, tokenizer, text, ctx,
 * seed), where chunks are in two of them, or missing between them. */
kvb_status kvb_capture_join(const kvb_capture *const *part, const char *const *name, size_t parts, kvb_capture_store **store,
                            kvb_error *err);
/* A capture as a file, one layer in memory at a time: of a joined one, what a run over the whole text would have written.
 * KVB_E_MISMATCH for one that lacks weights, moments or the sums behind them. */
kvb_status kvb_capture_write(const kvb_capture *capture, const char *path, kvb_progress_fn progress, void *progress_user, kvb_error *err);
void kvb_capture_close(kvb_capture_store *store);
const kvb_capture *kvb_capture_view(const kvb_capture_store *store);
/* Bytes one row takes over all layers and heads. */
uint64_t kvb_capture_row_bytes(const kvb_layer *geometry, uint32_t layers, bool gradients);
/* Bytes that the queries of one row take. */
uint64_t kvb_capture_query_bytes(const kvb_layer *geometry, uint32_t layers);

#endif
