/* Perplexity of llama.cpp with a cache of kvbook in place of its own, or with one of its own types:
 *
 *     llama_perplexity MODEL.gguf TEXT CTX CHUNKS BOOK.kvb [bare]
 *     llama_perplexity MODEL.gguf TEXT CTX CHUNKS f16|q8_0|q4_0
 *
 * Each token of a chunk is appended to a kvb_cache, its query reads the cache, and the result replaces what llama.cpp's attention gave
 * before the layer goes on: window, sinks and anchors as the book's recipe has them, or with `bare` nothing kept exact. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvbook/cache.h"
#include "llama_watch.h"

typedef struct reader {
    kvb_book *book;
    kvb_cache_options options;
    kvb_cache *cache;
    kvb_error err;
} reader;

static int fits(const kvb_layer *l, const watch_step *s)
{
    const kvb_rope_style style = s->rope_mode == GGML_ROPE_TYPE_NEOX ? KVB_ROPE_HALF : KVB_ROPE_INTERLEAVED;
    return l != NULL && l->heads == s->heads && l->kv_heads == s->kv_heads && l->head_dim == s->head_dim && l->rope_style == style &&
           l->rope_dims == s->rope_dims && fabs(l->rope_base - s->rope_base) < 0.5 && s->rope_scale == 1.0f;
}

static watch_answer attend(void *user, const watch_step *s)
{
    reader *r = user;
    const size_t kv = (size_t)s->kv_heads * s->head_dim, qs = (size_t)s->heads * s->head_dim;
    if (s->layer >= kvb_book_layers(r->book) || !fits(kvb_book_layer(r->book, s->layer), s))
        return fprintf(stderr, "layer %u is not what the book was made for\n", s->layer), WATCH_STOP;
    kvb_status status = KVB_OK;
    for (uint32_t i = 0; i < s->tokens && status == KVB_OK; i++) {
        status = kvb_cache_append(r->cache, s->layer, s->keys + i * kv, s->values + i * kv, &r->err);
        if (status == KVB_OK)
            status = kvb_cache_attend(r->cache, s->layer, s->queries + i * qs, s->out + i * qs, &r->err);
    }
    if (status == KVB_OK)
        return WATCH_WRITE_BACK;
    return fprintf(stderr, "%s: %s\n", r->err.where, r->err.message), WATCH_STOP;
}

/* -log p of a token. */
static double surprise(const float *logits, int32_t vocab, llama_token token)
{
    double most = -INFINITY, sum = 0;
    for (int32_t i = 0; i < vocab; i++)
        most = fmax(most, logits[i]);
    for (int32_t i = 0; i < vocab; i++)
        sum += exp(logits[i] - most);
    return most + log(sum) - logits[token];
}

static int score(watch *w, reader *r, uint32_t chunks, double *nll)
{
    const int32_t vocab = llama_vocab_n_tokens(llama_model_get_vocab(w->model));
    for (uint32_t c = 0; c < chunks; c++) {
        kvb_cache_destroy(r->cache);
        r->cache = NULL;
        if (r->book != NULL && kvb_cache_create(r->book, &r->options, &r->cache, &r->err) != KVB_OK)
            return fprintf(stderr, "%s: %s\n", r->err.where, r->err.message), 1;
        if (watch_run(w, c))
            return 1;
        for (uint32_t i = 0; i + 1 < w->ctx; i++)
            *nll += surprise(llama_get_logits_ith(w->context, (int32_t)i), vocab, w->tokens[(size_t)c * w->ctx + i + 1]);
    }
    return 0;
}

static int own_type(const char *name, enum ggml_type *type)
{
    static const enum ggml_type known[] = {GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(name, ggml_type_name(known[i])) == 0)
            return *type = known[i], 1;
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 6)
        return fprintf(stderr, "usage: llama_perplexity MODEL.gguf TEXT CTX CHUNKS BOOK.kvb [bare] | f16 | q8_0 | q4_0\n"), 2;
    watch w;
    reader r = {0};
    enum ggml_type type = GGML_TYPE_F16;
    const uint32_t ctx = (uint32_t)strtoul(argv[3], NULL, 10);
    uint32_t chunks = (uint32_t)strtoul(argv[4], NULL, 10);
    if (!own_type(argv[5], &type)) {
        if (kvb_book_open(argv[5], &r.book, &r.err) != KVB_OK || kvb_book_verify(r.book, &r.err) != KVB_OK)
            return fprintf(stderr, "%s: %s\n", r.err.where, r.err.message), (int)r.err.code;
        kvb_cache_options_init(&r.options, r.book);
        r.options.reserve = ctx;
        if (argc > 6 && strcmp(argv[6], "bare") == 0)
            r.options.policy.window = r.options.policy.sinks = 0, r.options.policy.anchor_fraction = 0;
    }
    double nll = 0;
    int failed = watch_open(&w, argv[1], argv[2], ctx, type, r.book != NULL ? attend : NULL, &r);
    chunks = !failed && chunks > w.chunks ? w.chunks : chunks;
    failed = failed || score(&w, &r, chunks, &nll);
    if (!failed)
        printf("%s%s: perplexity %.4f over %u chunks of %u tokens\n", argv[5], argc > 6 ? " bare" : "", exp(nll / chunks / (ctx - 1)), chunks, ctx);
    if (r.cache != NULL) {
        const kvb_cache_bytes b = kvb_cache_count_bytes(r.cache);
        printf("the last chunk's cache: %.3f bits an element without the codebooks\n", 8.0 * (double)(b.total - b.codebooks) / (double)b.elements);
    }
    watch_close(&w);
    kvb_cache_destroy(r.cache);
    kvb_book_close(r.book);
    return failed;
}
