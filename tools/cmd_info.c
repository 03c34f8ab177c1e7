#include <math.h>
#include <stdarg.h>
#include <string.h>

#include "format/base/fail.h"
#include "format/base/sha256.h"
#include "tools/commands.h"
#include "tools/identity.h"
#include "tools/output.h"
#include "tools/packed.h"
#include "tools/prompt.h"
#include "tools/summary.h"

typedef struct info_args {
    kvb_common_args common;
    kvb_strings books;
    bool json;
} info_args;

static const kvb_flag flags[] = {
    {"--json", KVB_FLAG_BOOL, NULL, "print one JSON object", .offset = offsetof(info_args, json)},
};

static const kvb_command_spec spec = {
    .name = "info",
    .operands = "BOOK.kvb|CACHE.kvp",
    .summary = "Show what a book, or a file of packed caches, holds and where it comes from",
    .about = "-v adds a line for each layer of a book.",
    .args_size = sizeof(info_args),
    .operands_offset = offsetof(info_args, books),
    .group = {{"Flags", flags, 1, 0}, KVB_GROUP(common, "Common flags", info_args, common)},
    .groups = 2,
};

/* A book with its META read. */
typedef struct book_view {
    const char *path;
    kvb_book *book;
    kvb_json_doc *doc;
    const kvb_json *meta;
    kvb_book_summary summary;
    kvb_policy policy;
} book_view;

enum { COLUMNS = 80, LABEL = 12 };

/* Prints "label       text", broken between words so that it fits the columns; a word longer than a line stays whole. */
static void put_line(const char *label, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put_line(const char *label, const char *format, ...)
{
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    int column = printf("%-*s", LABEL, label);
    for (char *word = strtok(text, " "); word != NULL; word = strtok(NULL, " ")) {
        int wide = 0;
        for (const char *c = word; *c != '\0'; c++)
            wide += ((unsigned char)*c & 0xc0) != 0x80;
        if (column > LABEL && column + 1 + wide > COLUMNS)
            column = printf("\n%*s", LABEL, "") - 1;
        else if (column > LABEL)
            column += printf(" ");
        kvb_put_printable(stdout, word);
        column += wide;
    }
    putchar('\n');
}

static const char *many(bool uniform)
{
    return uniform ? "" : " and others";
}

static void print_codebooks(const book_view *v)
{
    const kvb_codebook *const *c = v->summary.first;
    const kvb_codebook *const *fine = v->summary.fine;
    char size[32], text[2][KVB_SHAPE_TEXT];
    if (c[KVB_KEY] != NULL && c[KVB_VALUE] != NULL)
        put_line("codebooks", "%u: keys %s%s, values %s%s", v->summary.codebooks, kvb_codebook_text(c[KVB_KEY], text[0]),
                 many(v->summary.uniform[KVB_KEY]), kvb_codebook_text(c[KVB_VALUE], text[1]), many(v->summary.uniform[KVB_VALUE]));
    else
        put_line("codebooks", "none");
    if (!v->summary.uniform[KVB_KEY] || !v->summary.uniform[KVB_VALUE]) {
        const kvb_rate_range *r = v->summary.rate;
        put_line("", "dealt out over heads: keys %.3g to %.3g bits, %.3g on average; values %.3g to %.3g, %.3g", r[0].least, r[0].most,
                 r[0].mean, r[1].least, r[1].most, r[1].mean);
    }
    if (fine[KVB_KEY] != NULL)
        put_line("fine", "%u: keys %s%s, values %s%s, %s of tables", v->summary.codebooks, kvb_codebook_text(fine[KVB_KEY], text[0]),
                 many(v->summary.fine_uniform[KVB_KEY]), kvb_codebook_text(fine[KVB_VALUE], text[1]),
                 many(v->summary.fine_uniform[KVB_VALUE]), kvb_size_text(v->summary.fine_bytes, size));
}

static void print_source(const book_view *v)
{
    char extent[KVB_EXTENT_TEXT], names[800] = "";
    const kvb_json *m = v->meta;
    put_line("model", "%s (%s), weights %.12s, tokenizer %.12s", kvb_meta_string(m, "model.name"),
             kvb_meta_string(m, "model.architecture"), kvb_meta_string(m, "model.weights_sha256"),
             kvb_meta_string(m, "tokenizer.sha256"));
    const kvb_json *sources = kvb_meta_find(m, "text.sources");
    for (size_t i = 0, at = 0; i < kvb_json_count(sources) && at < sizeof names; i++)
        at += (size_t)snprintf(names + at, sizeof names - at, "%s%s", i == 0 ? " of " : ", ",
                               kvb_meta_string(kvb_json_at(sources, i), "name"));
    put_line("text", "%s%s", kvb_meta_extent(kvb_meta_find(m, "text"), extent), names);
    put_line("recipe", "%s (%s)", kvb_meta_string(m, "recipe.name"), kvb_meta_string(m, "recipe.source"));
}

static void print_geometry(const book_view *v)
{
    char frame[32];
    const kvb_layer *g = kvb_book_layer(v->book, 0);
    put_line("geometry", "%u layers: %u query heads, %u KV heads of %u channels; keys %s RoPE", kvb_book_layers(v->book),
             g->heads, g->kv_heads, g->head_dim, kvb_frame_text(g, frame));
    if (v->summary.layers_exact > 0)
        put_line("", "%u layers without codebooks: they stay exact", v->summary.layers_exact);
}

/* An error, or a dash where it was not measured. */
static const char *error_text(double error, char text[16])
{
    if (isnan(error))
        return "-";
    snprintf(text, 16, "%.4f", error);
    return text;
}

static void print_quality(const book_view *v)
{
    for (int kind = 0; kind < 2; kind++) {
        char text[3][16];
        const kvb_layer_quality q = kvb_average_book_quality(v->book, (kvb_kind)kind);
        const kvb_codebook *first = v->summary.first[kind];
        const char *what = first != NULL && first->forward != NULL ? " behind the transform" : "";
        if (isnan(q.train))
            put_line(kind == 0 ? "keys" : "values", "quality not on record");
        else
            put_line(kind == 0 ? "keys" : "values", "error%s %s, held out %s, worst group %s; %.1f %% used", what,
                     error_text(q.train, text[0]), error_text(q.heldout, text[1]), error_text(q.worst, text[2]), 100 * q.usage);
    }
}

static void print_layers(const book_view *v)
{
    printf("%5s %-9s %9s %9s %9s %9s\n", "layer", "frame", "keys", "held out", "values", "held out");
    for (uint32_t l = 0; l < kvb_book_layers(v->book); l++) {
        kvb_layer_quality k = kvb_average_quality(v->book, l, KVB_KEY);
        kvb_layer_quality x = kvb_average_quality(v->book, l, KVB_VALUE);
        char frame[32], text[4][16];
        printf("%5u %-9s %9s %9s %9s %9s\n", l, kvb_frame_text(kvb_book_layer(v->book, l), frame),
               error_text(k.train, text[0]), error_text(k.heldout, text[1]), error_text(x.train, text[2]),
               error_text(x.heldout, text[3]));
    }
}

static void print_table(const book_view *v, bool verbose)
{
    char size[32], hex[65], policy[96];
    kvb_sha256_hex(kvb_book_id(v->book), hex);
    printf("%s: %s, id %.16s\n", v->path, kvb_size_text(kvb_book_file_size(v->book), size), hex);
    print_source(v);
    print_geometry(v);
    print_codebooks(v);
    put_line("bits", "%g nominal; effective %.3f at 2K, %.3f at 32K, %.3f at 128K tokens", v->summary.bits_nominal,
             kvb_effective_bits(v->book, &v->policy, KVB_CTX_2K), kvb_effective_bits(v->book, &v->policy, KVB_CTX_32K),
             kvb_effective_bits(v->book, &v->policy, KVB_CTX_128K));
    put_line("kept exact", "%s", kvb_policy_text(&v->policy, policy));
    print_quality(v);
    if (verbose)
        print_layers(v);
}

static void put_shape(kvb_json_writer *w, const book_view *v, kvb_kind kind)
{
    const kvb_codebook *c = v->summary.first[kind];
    kvb_layer_quality q = kvb_average_book_quality(v->book, kind);
    kvb_json_begin_object(w, kind == KVB_KEY ? "keys" : "values");
    if (c != NULL) {
        char shape[KVB_SHAPE_TEXT];
        kvb_json_put_string(w, "shape", kvb_codebook_text(c, shape));
        kvb_json_put_u64(w, "channels", c->channels);
        kvb_json_put_u64(w, "centroids", c->stage_centroids);
        kvb_json_put_u64(w, "stages", c->stages);
    }
    kvb_json_put_bool(w, "uniform", v->summary.uniform[kind]);
    kvb_json_put_number(w, "bits", v->summary.rate[kind].mean);
    kvb_json_put_number(w, "bits_least", v->summary.rate[kind].least);
    kvb_json_put_number(w, "bits_most", v->summary.rate[kind].most);
    if (v->summary.fine[kind] != NULL) {
        char fine[KVB_SHAPE_TEXT];
        kvb_json_begin_object(w, "fine");
        kvb_json_put_string(w, "shape", kvb_codebook_text(v->summary.fine[kind], fine));
        kvb_json_put_u64(w, "channels", v->summary.fine[kind]->channels);
        kvb_json_put_u64(w, "centroids", v->summary.fine[kind]->stage_centroids);
        kvb_json_put_u64(w, "stages", v->summary.fine[kind]->stages);
        kvb_json_put_bool(w, "uniform", v->summary.fine_uniform[kind]);
        kvb_json_end_object(w);
    }
    kvb_json_put_number(w, "error", q.train);
    kvb_json_put_number(w, "error_heldout", q.heldout);
    kvb_json_put_number(w, "error_worst", q.worst);
    kvb_json_put_number(w, "usage", q.usage);
    kvb_json_put_number(w, "entropy", q.entropy);
    kvb_json_end_object(w);
}

static void put_geometry(kvb_json_writer *w, const book_view *v)
{
    kvb_json_begin_array(w, "layers");
    for (uint32_t l = 0; l < kvb_book_layers(v->book); l++) {
        const kvb_layer *g = kvb_book_layer(v->book, l);
        static const char *const kinds[] = {"full", "sliding", "unsupported"};
        char frame[32];
        kvb_json_begin_object(w, NULL);
        kvb_json_put_string(w, "kind", kinds[g->kind]);
        kvb_json_put_u64(w, "heads", g->heads);
        kvb_json_put_u64(w, "kv_heads", g->kv_heads);
        kvb_json_put_u64(w, "head_dim", g->head_dim);
        kvb_json_put_string(w, "frame", kvb_frame_text(g, frame));
        kvb_json_put_u64(w, "rope_dims", g->rope_dims);
        kvb_json_put_number(w, "rope_base", g->rope_base);
        kvb_json_put_number(w, "key_error", kvb_average_quality(v->book, l, KVB_KEY).train);
        kvb_json_put_number(w, "value_error", kvb_average_quality(v->book, l, KVB_VALUE).train);
        kvb_json_end_object(w);
    }
    kvb_json_end_array(w);
}

static kvb_status print_json(const book_view *v, kvb_error *err)
{
    kvb_json_writer w = {0};
    kvb_json_begin_object(&w, NULL);
    kvb_json_put_u64(&w, "schema", 1);
    kvb_json_put_string(&w, "book", v->path);
    kvb_json_put_sha256(&w, "id", kvb_book_id(v->book));
    kvb_json_put_u64(&w, "bytes", kvb_book_file_size(v->book));
    kvb_json_put_u64(&w, "codebooks", v->summary.codebooks);
    kvb_json_put_number(&w, "bits_nominal", v->summary.bits_nominal);
    kvb_put_effective_bits(&w, v->book, &v->policy);
    kvb_json_put_u64(&w, "fine_bytes", v->summary.fine_bytes);
    kvb_put_policy(&w, &v->policy, NULL);
    put_shape(&w, v, KVB_KEY);
    put_shape(&w, v, KVB_VALUE);
    put_geometry(&w, v);
    kvb_json_put_value(&w, "meta", v->meta);
    kvb_json_end_object(&w);
    return kvb_print_json(&w, "info", err);
}

static kvb_status run(const void *args, kvb_progress *p, kvb_error *err)
{
    const info_args *a = args;
    if (a->books.count != 1)
        return kvb_fail(err, KVB_E_USAGE, "info", "found %zu files, expected one book (.kvb) or one of packed caches (.kvp)",
                        a->books.count);
    if (kvb_is_cache_file(a->books.items[0]))
        return kvb_info_packed(a->books.items[0], a->json, err);
    book_view v = {.path = a->books.items[0]};
    size_t size;
    kvb_status status = kvb_book_open(v.path, &v.book, err);
    if (status != KVB_OK)
        return status;
    const char *text = kvb_book_meta(v.book, &size);
    status = kvb_json_parse(text, size, v.path, &v.doc, err);
    if (status == KVB_OK) {
        v.meta = kvb_json_root(v.doc);
        v.summary = kvb_summarise_book(v.book);
        v.policy = kvb_book_policy(v.book);
        if (a->json)
            status = print_json(&v, err);
        else
            print_table(&v, p->verbose);
        kvb_json_free(v.doc);
    }
    kvb_book_close(v.book);
    return status;
}

static const info_args defaults;
const kvb_command kvb_info_command = {&spec, &defaults, run};
