#include "tools/verify_capture.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "calib/capture.h"
#include "format/base/fail.h"
#include "format/base/half.h"
#include "format/base/json.h"
#include "format/base/mapfile.h"
#include "tools/findings.h"
#include "tools/output.h"

enum { HEADER_AT = 8 };

bool kvb_is_capture_file(const char *path)
{
    uint8_t head[HEADER_AT + 1];
    size_t got = 0;
    return kvb_read_prefix(path, head, sizeof head, &got, NULL) == KVB_OK && got == sizeof head && head[HEADER_AT] == '{';
}

typedef struct verification {
    const kvb_capture *capture;
    uint32_t layer; /* where the checks stand */
    kvb_findings found;
} verification;

/* One array of the layer: the first bad number of `count`, or `count` where all are good; `row` is how many make a row. */
static void count_check(verification *v, const char *what, uint64_t bad, uint64_t count, uint64_t row, const char *expected)
{
    char text[200];
    v->found.checks++;
    if (bad == count)
        return;
    snprintf(text, sizeof text, "layer %u, %s: number %" PRIu64 " of row %" PRIu64 " of all heads, expected %s", v->layer, what, bad % row,
             bad / row, expected);
    kvb_findings_failed(&v->found, text);
}

static void check_halves(verification *v, const char *what, const uint16_t *half, uint64_t count, uint64_t row)
{
    if (half != NULL)
        count_check(v, what, kvb_half_first_bad(half, count), count, row, "a finite number");
}

static void check_floats(verification *v, const char *what, const float *x, uint64_t count, uint64_t row, bool signs)
{
    uint64_t i = 0;
    while (x != NULL && i < count && isfinite(x[i]) && (signs || x[i] >= 0.0f))
        i++;
    if (x != NULL)
        count_check(v, what, i, count, row, signs ? "a finite number" : "a finite number from 0 on");
}

/* A head whose weights are all 0 has nothing to train on. */
static void check_sums(verification *v, const char *what, const float *weight, uint32_t heads, uint64_t rows)
{
    uint64_t g = 0;
    for (bool any = true; weight != NULL && any && g < heads; g += any) {
        any = false;
        for (uint64_t i = 0; !any && i < rows; i++)
            any = weight[g * rows + i] > 0.0f;
    }
    if (weight != NULL)
        count_check(v, what, g, heads, 1, "a head with a weight above 0");
}

static kvb_status check_layer(verification *v, kvb_error *err)
{
    const kvb_layer *g = &v->capture->geometry[v->layer];
    const uint64_t rows = v->capture->rows, dim = g->head_dim, heads = g->kv_heads;
    if (g->kind == KVB_LAYER_UNSUPPORTED)
        return KVB_OK;
    kvb_status status = kvb_capture_load(v->capture, &v->layer, 1, err);
    if (status != KVB_OK)
        return status;
    const kvb_capture_layer *l = &v->capture->layer[v->layer];
    check_halves(v, "keys", l->keys, heads * rows * dim, dim);
    check_halves(v, "values", l->values, heads * rows * dim, dim);
    check_halves(v, "queries", l->queries, g->heads * v->capture->query_rows * dim, dim);
    check_floats(v, "weights of keys", l->weight_k, heads * rows, 1, false);
    check_floats(v, "weights of values", l->weight_v, heads * rows, 1, false);
    check_sums(v, "weights of keys", l->weight_k, g->kv_heads, rows);
    check_sums(v, "weights of values", l->weight_v, g->kv_heads, rows);
    check_floats(v, "relative moments of the queries", l->moment_relative, heads * dim * dim, dim, true);
    check_floats(v, "moments of the queries", l->moment_post, heads * dim * dim, dim, true);
    for (int kind = 0; kind < 2; kind++) {
        check_floats(v, kind == KVB_KEY ? "sensitivities of keys" : "sensitivities of values", l->sensitivity[kind], heads * dim * dim, dim,
                     true);
        check_halves(v, kind == KVB_KEY ? "gradients of keys" : "gradients of values", l->gradient[kind], heads * rows * dim, dim);
    }
    return KVB_OK;
}

static kvb_status check_layers(verification *v, kvb_error *err)
{
    kvb_status status = KVB_OK;
    for (v->layer = 0; status == KVB_OK && v->layer < v->capture->layers; v->layer++)
        status = check_layer(v, err);
    return status;
}

static kvb_status print_json(const char *path, verification *v, kvb_error *err)
{
    kvb_json_writer w = {0};
    v->found.json = &w;
    kvb_json_begin_object(&w, NULL);
    kvb_json_put_u64(&w, "schema", 1);
    kvb_json_put_string(&w, "capture", path);
    kvb_json_begin_array(&w, "failed");
    kvb_status status = check_layers(v, err);
    kvb_json_end_array(&w);
    kvb_json_put_u64(&w, "rows", v->capture->rows);
    kvb_findings_put_counts(&v->found);
    kvb_findings_put_ok(&v->found);
    kvb_json_end_object(&w);
    if (status == KVB_OK)
        return kvb_print_json(&w, "verify", err);
    kvb_json_writer_free(&w);
    return status;
}

kvb_status kvb_verify_capture(const char *path, bool json, kvb_error *err)
{
    kvb_capture_store *store = NULL;
    kvb_status status = kvb_capture_open(path, &store, err);
    if (status != KVB_OK)
        return status;
    verification v = {.capture = kvb_capture_view(store)};
    status = json ? print_json(path, &v, err) : check_layers(&v, err);
    if (status == KVB_OK && !json) {
        kvb_findings_print_rest(&v.found);
        kvb_findings_print_summary(&v.found, path);
    }
    if (status == KVB_OK)
        status = kvb_findings_status(&v.found, path, "capture the text again", err);
    kvb_capture_close(store);
    return status;
}
