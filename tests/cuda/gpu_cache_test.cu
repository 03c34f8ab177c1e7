/* The GPU cache against the CPU cache and against attention in double over what it says it holds, on random books of every shape
 * that has a kernel of its own and some that have none. Needs a device; `make check-cuda` runs it. Prints one line a check, ends
 * with "N passed, N failed". */
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

#include "kvbook/cuda.h"
extern "C" {
#include "runtime/anchor_pool.h"
#include "tests/support/rt_book.h"
}

static int passed, failed;

static bool check(bool ok, const char *name, const char *format, double value)
{
    char text[120];
    snprintf(text, sizeof text, format, value);
    printf("%s %s: %s\n", ok ? "ok  " : "FAIL", name, text);
    fflush(stdout);
    (ok ? passed : failed)++;
    return ok;
}

static bool good(kvb_status status, const kvb_error &err, const char *name)
{
    if (status == KVB_OK)
        return true;
    printf("FAIL %s: %s: %s\n", name, err.where, err.message);
    failed++;
    return false;
}

/* Device memory that frees itself. */
struct buffer {
    void *p = NULL;
    explicit buffer(size_t bytes) { if (cudaMalloc(&p, bytes != 0 ? bytes : 1) != cudaSuccess) abort(); }
    ~buffer() { cudaFree(p); }
    buffer(const buffer &) = delete;
    void put(const void *from, size_t bytes) { if (cudaMemcpy(p, from, bytes, cudaMemcpyHostToDevice) != cudaSuccess) abort(); }
    void get(void *to, size_t bytes) const { if (cudaMemcpy(to, p, bytes, cudaMemcpyDeviceToHost) != cudaSuccess) abort(); }
};

/* B sequences of one layer on both machines. Pages are dealt out backwards and interleaved, so that a page table matters. */
struct pair_of_caches {
    const kvb_layer *layer = NULL;
    kvb_book *book = NULL;
    kvb_cuda_book *device_book = NULL;
    kvb_cuda_cache *device = NULL;
    std::vector<kvb_cache *> host;
    std::vector<int32_t> page, slot;
    uint32_t B = 0, pages_each = 0, page_tokens = 0;
    kvb_error err = {};
    ~pair_of_caches()
    {
        for (kvb_cache *c : host)
            kvb_cache_destroy(c);
        kvb_cuda_cache_destroy(device);
        kvb_cuda_book_destroy(device_book);
        kvb_book_close(book);
    }
    bool open(const rt_shape &shape, const kvb_policy &policy, uint32_t sequences, uint32_t tokens, uint32_t per_page,
              const char *name)
    {
        B = sequences;
        page_tokens = per_page;
        pages_each = (tokens + per_page - 1) / per_page;
        book = rt_book_make(&shape, &policy);
        if (book == NULL)
            return check(false, name, "no book %g", 0.0);
        layer = kvb_book_layer(book, 0);
        if (!good(kvb_cuda_book_create(book, 0, &device_book, &err), err, name))
            return false;
        kvb_cuda_cache_options o;
        kvb_cuda_cache_options_init(&o, device_book);
        o.policy = policy;
        o.slots = B;
        o.pages = B * pages_each;
        o.page_tokens = per_page;
        o.sequence_pages = pages_each;
        o.seed = 5;
        if (!good(kvb_cuda_cache_create(device_book, &o, &device, &err), err, name))
            return false;
        for (uint32_t b = 0; b < B; b++) {
            kvb_cache_options h;
            kvb_cache_options_init(&h, book);
            h.policy = policy;
            h.seed = 5;
            kvb_cache *c = NULL;
            if (!good(kvb_cache_create(book, &h, &c, &err), err, name))
                return false;
            host.push_back(c);
            slot.push_back((int32_t)(B - 1 - b));
        }
        page.resize((size_t)B * pages_each);
        for (uint32_t i = 0; i < B * pages_each; i++)
            page[i % B * pages_each + i / B] = (int32_t)(B * pages_each - 1 - i);
        return true;
    }
};

/* Attention in double of query q [D] at `position` over everything the GPU cache says it holds. */
static std::vector<double> reference(pair_of_caches &c, uint32_t sequence, uint32_t length, uint32_t head, uint32_t position,
                                     const std::vector<float> &keys, const std::vector<float> &values, const float *q)
{
    const uint32_t D = c.layer->head_dim, g = head / (c.layer->heads / c.layer->kv_heads);
    const uint32_t from = c.layer->kind == KVB_LAYER_SLIDING && position + 1 > c.layer->sliding_window
                              ? position + 1 - c.layer->sliding_window : 0;
    std::vector<double> score(length), out(D);
    double most = -1e300, sum = 0.0;
    (void)sequence;
    for (uint32_t j = from; j <= position; j++) {
        double x = 0.0;
        for (uint32_t d = 0; d < D; d++)
            x += (double)q[d] * (double)keys[((size_t)g * length + j) * D + d];
        score[j] = x * c.layer->attention_scale;
        most = score[j] > most ? score[j] : most;
    }
    for (uint32_t j = from; j <= position; j++) {
        const double p = exp(score[j] - most);
        sum += p;
        for (uint32_t d = 0; d < D; d++)
            out[d] += p * (double)values[((size_t)g * length + j) * D + d];
    }
    for (double &x : out)
        x /= sum;
    return out;
}

static bool read_all(pair_of_caches &c, uint32_t sequence, uint32_t length, std::vector<float> &keys, std::vector<float> &values,
                     std::vector<int> &exact)
{
    const uint32_t D = c.layer->head_dim, G = c.layer->kv_heads;
    keys.resize((size_t)G * length * D);
    values.resize(keys.size());
    exact.resize((size_t)G * length);
    for (uint32_t g = 0; g < G; g++)
        for (uint32_t j = 0; j < length; j++) {
            const size_t at = (size_t)g * length + j;
            if (kvb_cuda_cache_read(c.device, 0, (uint32_t)c.slot[sequence], c.page.data() + (size_t)sequence * c.pages_each, length,
                                    g, j, &keys[at * D], &values[at * D], &exact[at], &c.err) != KVB_OK)
                return good(KVB_E_CHECK, c.err, "read");
        }
    return true;
}

static bool plain_everywhere; /* run_pair() on the kernels that take any shape and any number of anchors */

struct errors {
    double step = 0.0, row = 0.0, rows = 0.0; /* of a whole step, of one row of it, and tokens held otherwise */
};

/* A row may be further off than all rows together: half floats of queries and weights cost a row with few heavy tokens more. */
static const double ROW_LIMIT = 5e-3;

static double apart(const float *a, const double *b, size_t n)
{
    double difference = 0.0, size = 0.0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        size += b[i] * b[i];
    }
    const double x = sqrt(difference / size);
    return x == x ? x : 1e9;
}

/* Runs sequences of different lengths token by token (or `step` at a time) on both machines. */
static void run_pair(const char *name, rt_shape shape, kvb_policy policy, uint32_t tokens, uint32_t step, uint32_t prompt,
                     double logit, double limit)
{
    const uint32_t B = 3;
    pair_of_caches c;
    shape.layers = 1;
    shape.seed = 77;
    char label[200];
    if (!c.open(shape, policy, B, tokens, 64, name))
        return;
    if (plain_everywhere)
        kvb_cuda_cache_plain(c.device);
    snprintf(label, sizeof label, "%s [%s]", name, plain_everywhere ? "plain everywhere" : kvb_cuda_book_kernel(c.device_book, 0));
    const uint32_t H = shape.heads, G = shape.kv_heads, D = shape.head_dim;
    std::vector<rt_rows> rows(B);
    for (uint32_t b = 0; b < B; b++) {
        if (!rt_rows_make(&rows[b], c.layer, tokens, 1000 + b))
            abort();
        for (size_t i = 0; i < (size_t)H * tokens * D; i++)
            rows[b].q[i] *= (float)logit;
    }
    buffer keys((size_t)B * tokens * G * D * 4), values((size_t)B * tokens * G * D * 4), q((size_t)B * 8 * H * D * 4);
    buffer out((size_t)B * 8 * H * D * 4), length(B * 4), slot(B * 4), page(c.page.size() * 4);
    page.put(c.page.data(), c.page.size() * 4);
    slot.put(c.slot.data(), B * 4);
    cudaStream_t stream;
    cudaStreamCreate(&stream);
    errors worst;
    std::vector<double> all;
    std::vector<float> one(G * D), query(H * D), host_out(H * D), got, k, v;
    std::vector<int> exact;
    kvb_cuda_batch batch = {B, step, 0, KVB_CUDA_FLOAT, (const int32_t *)length.p, (const int32_t *)slot.p, (const int32_t *)page.p};
    bool fine = true;
    for (uint32_t at = 0; at < tokens && fine; at += batch.tokens) {
        batch.tokens = at == 0 && prompt > 0 ? prompt : at + step <= tokens ? step : tokens - at;
        const uint32_t n = batch.tokens;
        std::vector<float> kk((size_t)B * n * G * D), vv(kk.size()), qq((size_t)B * n * H * D), oo(qq.size());
        std::vector<int32_t> before(B, (int32_t)at);
        for (uint32_t b = 0; b < B; b++)
            for (uint32_t i = 0; i < n; i++) {
                rt_rows_take(rows[b].k_pre, G, tokens, D, at + i, &kk[((size_t)b * n + i) * G * D]);
                rt_rows_take(rows[b].v, G, tokens, D, at + i, &vv[((size_t)b * n + i) * G * D]);
                rt_rows_take(rows[b].q, H, tokens, D, at + i, &qq[((size_t)b * n + i) * H * D]);
            }
        length.put(before.data(), B * 4);
        keys.put(kk.data(), kk.size() * 4);
        values.put(vv.data(), vv.size() * 4);
        for (uint32_t b = 0; b < B; b++)
            for (uint32_t i = 0; i < n; i++) {
                fine = fine && good(kvb_cache_append(c.host[b], 0, &kk[((size_t)b * n + i) * G * D], &vv[((size_t)b * n + i) * G * D],
                                                     &c.err), c.err, name);
                if (i + 1 < n || (prompt > 0 && at == 0))
                    continue;
                fine = fine && good(kvb_cache_attend(c.host[b], 0, &qq[((size_t)b * n + i) * H * D], host_out.data(), &c.err), c.err,
                                    name);
                if (step == 1)
                    oo.insert(oo.end(), host_out.begin(), host_out.end());
            }
        if (prompt > 0 && at == 0) {
            fine = fine && good(kvb_cuda_prefill(c.device, 0, &batch, keys.p, values.p, NULL, NULL, NULL, stream, &c.err), c.err, name);
            continue;
        }
        q.put(qq.data(), qq.size() * 4);
        cudaMemset(out.p, 0xff, (size_t)B * n * H * D * 4);
        fine = fine && good(kvb_cuda_append(c.device, 0, &batch, keys.p, values.p, stream, &c.err), c.err, name) &&
               good(kvb_cuda_attend(c.device, 0, &batch, q.p, out.p, stream, &c.err), c.err, name) &&
               good(kvb_cuda_cache_check(c.device, stream, &c.err), c.err, name);
        if (!fine)
            break;
        got.resize((size_t)B * n * H * D);
        out.get(got.data(), got.size() * 4);
        if (step == 1)
            for (uint32_t b = 0; b < B; b++) {
                std::vector<double> expected(oo.end() - (B - b) * H * D, oo.end() - (B - b - 1) * H * D);
                all.push_back(apart(&got[(size_t)b * H * D], expected.data(), H * D));
            }
        const uint32_t now = at + n;
        if (now != tokens && now % 97 >= step)
            continue;
        std::vector<double> expected;
        for (uint32_t b = 0; b < B; b++) {
            if (!read_all(c, b, now, k, v, exact))
                return;
            for (uint32_t i = 0; i < n; i++)
                for (uint32_t h = 0; h < H; h++) {
                    const size_t row = ((size_t)b * n + i) * H + h;
                    const std::vector<double> r = reference(c, b, now, h, at + i, k, v, &qq[row * D]);
                    const double x = apart(&got[row * D], r.data(), D);
                    worst.row = x > worst.row ? x : worst.row;
                    expected.insert(expected.end(), r.begin(), r.end());
                }
            for (uint32_t g = 0; g < G && step == 1 && now == tokens; g++)
                for (uint32_t j = 0; j < now; j++) {
                    std::vector<float> hk(D), hv(D), given(G * D);
                    std::vector<double> value(D), whole(D);
                    int is = 0;
                    fine = fine && good(kvb_cache_read(c.host[b], 0, g, j, hk.data(), hv.data(), &is, &c.err), c.err, name);
                    rt_rows_take(rows[b].v, G, tokens, D, j, given.data());
                    for (uint32_t d = 0; d < D; d++) {
                        value[d] = (double)hv[d];
                        whole[d] = (double)given[g * D + d];
                    }
                    /* Between centroids that are equally near either may be taken. */
                    const float *mine = &v[((size_t)g * now + j) * D];
                    worst.rows += is != exact[(size_t)g * now + j] ||
                                  (apart(mine, value.data(), D) > 2e-3 &&
                                   apart(mine, whole.data(), D) > 1.0001 * apart(hv.data(), whole.data(), D));
                }
        }
        const double x = apart(got.data(), expected.data(), expected.size());
        worst.step = x > worst.step ? x : worst.step;
    }
    for (rt_rows &r : rows)
        rt_rows_free(&r);
    cudaStreamDestroy(stream);
    if (!fine)
        return;
    check(worst.step <= limit, label, "against float64 over what it holds %.2e", worst.step);
    check(worst.row <= ROW_LIMIT, label, "the worst row %.2e", worst.row);
    if (step == 1) {
        check(worst.rows <= 0.002 * B * G * tokens, label, "%.0f tokens that the CPU cache holds otherwise", worst.rows);
        if (!all.empty()) {
            std::vector<double> sorted(all);
            for (size_t i = 1; i < sorted.size(); i++)
                for (size_t j = i; j > 0 && sorted[j] < sorted[j - 1]; j--) {
                    const double x = sorted[j];
                    sorted[j] = sorted[j - 1];
                    sorted[j - 1] = x;
                }
            check(sorted[sorted.size() / 2] <= limit, label, "against the CPU cache, median %.2e", sorted[sorted.size() / 2]);
        }
    }
}

static rt_shape shape_of(uint32_t H, uint32_t G, uint32_t D, uint32_t d, uint32_t K, uint32_t stages, kvb_rope_frame frame,
                         kvb_rope_style style)
{
    rt_shape s = {};
    s.heads = H;
    s.kv_heads = G;
    s.head_dim = D;
    s.channels = d;
    s.centroids = K;
    s.stages = stages;
    s.frame = frame;
    s.rope_block = 16;
    s.rope_style = style;
    s.rope_dims = D;
    return s;
}

static kvb_policy policy_of(double anchors, kvb_anchor_score score, uint32_t window, uint32_t sinks)
{
    kvb_policy p = {};
    p.anchor_fraction = anchors;
    p.score = score;
    p.window = window;
    p.sinks = sinks;
    return p;
}

static void shapes(void)
{
    const struct { uint32_t d, K, stages; } kinds[] = {{4, 16, 0},   {8, 16, 2},    {8, 256, 0},  {4, 256, 0}, {2, 256, 0},
                                                            {16, 256, 0}, {16, 4096, 0}, {32, 4096, 0}};
    const kvb_policy plain = policy_of(0.02, KVB_SCORE_EXACT_K, 32, 4);
    char name[100];
    for (const auto &k : kinds)
        for (uint32_t D = 64; D <= 256; D *= 2)
            for (int style = 1; style <= 2; style++) {
                if (D == 256 && style == 1)
                    continue;
                snprintf(name, sizeof name, "%ux%u%s D %u block:16 %s", k.d, k.K, k.stages ? "+" : "", D, style == 2 ? "halves" : "pairs");
                rt_shape shape = shape_of(8, 2, D, k.d, k.K, k.stages, KVB_FRAME_BLOCK, (kvb_rope_style)style);
                run_pair(name, shape, plain, 400, 1, 0, 1.0, 2e-3);
                shape.grid = true;
                run_pair(name, shape, plain, 400, 1, 0, 1.0, 2e-3);
            }
    const uint32_t D = 128;
    run_pair("4x16 post", shape_of(8, 2, D, 4, 16, 0, KVB_FRAME_POST, KVB_ROPE_HALF), plain, 300, 1, 0, 1.0, 2e-3);
    run_pair("4x16 pre", shape_of(8, 2, D, 4, 16, 0, KVB_FRAME_PRE, KVB_ROPE_HALF), plain, 300, 1, 0, 1.0, 2e-3);
    run_pair("8x256 block:16, 8 queries a KV head", shape_of(16, 2, D, 8, 256, 0, KVB_FRAME_BLOCK, KVB_ROPE_HALF), plain, 300, 1, 0,
             1.0, 2e-3);
    run_pair("8x256 block:16, 3 queries a KV head", shape_of(6, 2, D, 8, 256, 0, KVB_FRAME_BLOCK, KVB_ROPE_HALF), plain, 300, 1, 0,
             1.0, 2e-3);
    run_pair("4x16 large logits", shape_of(8, 2, D, 4, 16, 0, KVB_FRAME_BLOCK, KVB_ROPE_HALF), plain, 400, 1, 0, 3.0, 2e-3);
    run_pair("8x256 large logits", shape_of(8, 2, D, 8, 256, 0, KVB_FRAME_BLOCK, KVB_ROPE_HALF), plain, 400, 1, 0, 3.0, 2e-3);
    rt_shape grid = shape_of(8, 2, D, 4, 16, 0, KVB_FRAME_BLOCK, KVB_ROPE_HALF);
    grid.grid = true;
    run_pair("4x16 large logits", grid, plain, 400, 1, 0, 3.0, 2e-3);
    rt_shape many = shape_of(96, 96, 64, 4, 16, 0, KVB_FRAME_BLOCK, KVB_ROPE_HALF); /* with three sequences more blocks than SELECT_MANY_BLOCKS */
    many.grid = true;
    run_pair("4x16 many blocks", many, plain, 100, 1, 0, 1.0, 2e-3);
    grid.frame = KVB_FRAME_POST;
    run_pair("4x16 post", grid, plain, 300, 1, 0, 1.0, 2e-3);
    rt_shape sliding = shape_of(8, 2, D, 4, 16, 0, KVB_FRAME_BLOCK, KVB_ROPE_HALF);
    sliding.sliding = 100;
    run_pair("4x16 sliding", sliding, plain, 300, 1, 0, 1.0, 2e-3);
    rt_shape turned = shape_of(8, 2, D, 8, 16, 2, KVB_FRAME_BLOCK, KVB_ROPE_INTERLEAVED);
    turned.transform = true;
    turned.fine_channels = 2;
    turned.fine_centroids = 256;
    run_pair("add:8x16+16 with transform", turned, plain, 300, 1, 0, 1.0, 2e-3);
    kvb_policy fine = plain;
    fine.exact = KVB_EXACT_FINE;
    run_pair("add:8x16+16 with transform, fine codes", turned, fine, 300, 1, 0, 1.0, 2e-3);
    turned.frame = KVB_FRAME_PRE;
    run_pair("add:8x16+16 with transform, pre, fine codes", turned, fine, 300, 1, 0, 1.0, 2e-3);
    rt_shape partial = shape_of(8, 2, D, 8, 256, 0, KVB_FRAME_BLOCK, KVB_ROPE_HALF);
    partial.rope_dims = 64;
    run_pair("8x256 partial RoPE", partial, plain, 300, 1, 0, 1.0, 2e-3);
    run_pair("8x256 no RoPE", shape_of(8, 2, D, 8, 256, 0, KVB_FRAME_PRE, KVB_ROPE_NONE), plain, 300, 1, 0, 1.0, 2e-3);
}

/* Books that only the kernel for any mixture of shapes takes: as the recipes `best` and `best-fast` make them. */
static void mixtures(void)
{
    const struct { uint32_t d, stages, other_d, other_stages; } kinds[] = {{16, 0, 16, 2}, {16, 3, 8, 2}, {8, 3, 4, 2},
                                                                           {4, 3, 2, 2},   {2, 3, 1, 2},  {4, 0, 32, 0}};
    const kvb_policy some = policy_of(0.02, KVB_SCORE_EXACT_K, 32, 4);
    char name[100];
    for (const auto &k : kinds)
        for (uint32_t D = 64; D <= 128; D *= 2)
            for (int style = 1; style <= 2; style++)
                for (int frame = 0; frame < 2; frame++) {
                    rt_shape s = shape_of(8, 2, D, k.d, 16, k.stages, frame ? KVB_FRAME_PRE : KVB_FRAME_BLOCK, (kvb_rope_style)style);
                    s.other_channels = k.other_d;
                    s.other_stages = k.other_stages;
                    s.key_transform = k.d != 16;
                    snprintf(name, sizeof name, "%ux16 of %u and %ux16 of %u, D %u %s %s", k.d, k.stages, k.other_d, k.other_stages, D,
                             frame ? "pre" : "block:16", style == 2 ? "halves" : "pairs");
                    run_pair(name, s, some, 300, 1, 0, 1.0, 2e-3);
                }
    rt_shape s = shape_of(8, 2, 128, 8, 16, 3, KVB_FRAME_PRE, KVB_ROPE_HALF);
    s.other_channels = 4;
    s.other_stages = 2;
    s.key_transform = true;
    s.fine_channels = 2;
    s.fine_centroids = 256;
    kvb_policy fine = some;
    fine.exact = KVB_EXACT_FINE;
    run_pair("a mixture, pre, fine codes", s, fine, 300, 1, 0, 1.0, 2e-3);
    run_pair("a mixture, pre, large logits", s, some, 400, 1, 0, 3.0, 2e-3);
    run_pair("a mixture, pre, three tokens a step", s, some, 300, 3, 0, 1.0, 2e-3);
    run_pair("a mixture, pre, nothing exact", s, policy_of(0.0, KVB_SCORE_EXACT_K, 0, 0), 300, 1, 0, 1.0, 2e-3);
    s.frame = KVB_FRAME_POST;
    run_pair("a mixture, post", s, some, 300, 1, 0, 1.0, 2e-3);
    s.rope_style = KVB_ROPE_NONE;
    s.frame = KVB_FRAME_PRE;
    run_pair("a mixture, no RoPE", s, some, 300, 1, 0, 1.0, 2e-3);
}

static void policies(void)
{
    const rt_shape s = shape_of(8, 2, 64, 4, 16, 0, KVB_FRAME_BLOCK, KVB_ROPE_HALF);
    run_pair("nothing exact", s, policy_of(0.0, KVB_SCORE_EXACT_K, 0, 0), 200, 1, 0, 1.0, 2e-3);
    run_pair("anchors without a window", s, policy_of(0.1, KVB_SCORE_KEY_NORM, 0, 0), 200, 1, 0, 1.0, 2e-3);
    run_pair("attention mass", s, policy_of(0.05, KVB_SCORE_EXACT_V, 32, 0), 300, 1, 0, 1.0, 2e-3);
    run_pair("key norm", s, policy_of(0.05, KVB_SCORE_KEY_NORM, 16, 2), 300, 1, 0, 1.0, 2e-3);
    run_pair("first n", s, policy_of(0.05, KVB_SCORE_FIRST_N, 16, 0), 300, 1, 0, 1.0, 2e-3);
    run_pair("random", s, policy_of(0.05, KVB_SCORE_RANDOM, 16, 7), 300, 1, 0, 1.0, 2e-3);
    run_pair("a window longer than the text", s, policy_of(0.05, KVB_SCORE_EXACT_K, 500, 3), 100, 1, 0, 1.0, 2e-3);
    run_pair("three tokens a step", s, policy_of(0.05, KVB_SCORE_EXACT_K, 32, 4), 300, 3, 0, 1.0, 2e-3);
    run_pair("eight tokens a step, 4 queries a KV head", s, policy_of(0.05, KVB_SCORE_EXACT_K, 32, 4), 304, 8, 0, 1.0, 2e-3);
    run_pair("three tokens a step, no window", s, policy_of(0.0, KVB_SCORE_EXACT_K, 0, 0), 99, 3, 0, 1.0, 2e-3);
    run_pair("a prompt of 150", s, policy_of(0.05, KVB_SCORE_KEY_NORM, 16, 2), 300, 1, 150, 1.0, 2e-3);
    for (int i = 0; i < 2; i++) {
        plain_everywhere = i == 1;
        run_pair("a prompt of 150, random", s, policy_of(0.05, KVB_SCORE_RANDOM, 16, 7), 300, 1, 150, 1.0, 2e-3);
        run_pair("a prompt of 900, random, many anchors", s, policy_of(0.4, KVB_SCORE_RANDOM, 16, 7), 920, 1, 900, 1.0, 2e-3);
    }
    plain_everywhere = false;
    /* Prompts are encoded by other code than steps. */
    const kvb_policy kept = policy_of(0.05, KVB_SCORE_RANDOM, 16, 7);
    const struct { uint32_t D, d, K, stages; } prompts[] = {{128, 1, 16, 0},  {128, 2, 16, 2}, {64, 2, 256, 0},    {128, 4, 256, 0},  {128, 8, 16, 2}, {256, 8, 256, 0},
                                                            {80, 5, 256, 0},  {128, 16, 256, 0},  {64, 32, 4096, 0}, {128, 32, 4096, 0}, {64, 64, 16, 0}};
    char name[100];
    for (const auto &p : prompts) {
        snprintf(name, sizeof name, "a prompt of 203, %ux%u%s D %u", p.d, p.K, p.stages ? "+" : "", p.D);
        run_pair(name, shape_of(8, 2, p.D, p.d, p.K, p.stages, KVB_FRAME_BLOCK, KVB_ROPE_HALF), kept, 260, 1, 203, 1.0,
                 p.d == 1 ? 5e-3 : 2e-3); /* one channel: half floats often lie just between two centroids */
    }
    rt_shape turned = shape_of(8, 2, 128, 8, 16, 2, KVB_FRAME_BLOCK, KVB_ROPE_INTERLEAVED);
    turned.transform = true;
    turned.fine_channels = 2;
    turned.fine_centroids = 256;
    run_pair("a prompt of 203 with transform", turned, kept, 260, 1, 203, 1.0, 2e-3);
    kvb_policy fine = kept;
    fine.exact = KVB_EXACT_FINE;
    run_pair("a prompt of 203 with transform, fine codes", turned, fine, 260, 1, 203, 1.0, 2e-3);
}

#include "tests/cuda/gpu_cache_calls.inc"

/* One of each kind, for the sanitizers: they make a kernel a hundred times slower. */
static void few(void)
{
    const kvb_policy p = policy_of(0.1, KVB_SCORE_EXACT_K, 16, 2);
    run_pair("4x16", shape_of(4, 1, 64, 4, 16, 0, KVB_FRAME_BLOCK, KVB_ROPE_HALF), p, 70, 1, 0, 1.0, 2e-3);
    rt_shape small = shape_of(4, 1, 128, 4, 16, 0, KVB_FRAME_BLOCK, KVB_ROPE_HALF);
    small.grid = true;
    run_pair("4x16", small, p, 170, 1, 0, 1.0, 2e-3);
    small.rope_style = KVB_ROPE_INTERLEAVED;
    run_pair("4x16 pairs", small, p, 70, 1, 0, 1.0, 2e-3);
    run_pair("add:8x16+16 pairs", shape_of(4, 1, 128, 8, 16, 2, KVB_FRAME_BLOCK, KVB_ROPE_INTERLEAVED), p, 70, 1, 0, 1.0, 2e-3);
    rt_shape grid = shape_of(4, 1, 64, 8, 256, 0, KVB_FRAME_BLOCK, KVB_ROPE_HALF);
    run_pair("8x256", grid, p, 70, 1, 0, 1.0, 2e-3);
    grid.grid = true;
    run_pair("8x256", grid, p, 70, 1, 0, 1.0, 2e-3);
    run_pair("16x4096", shape_of(4, 1, 64, 16, 4096, 0, KVB_FRAME_BLOCK, KVB_ROPE_HALF), p, 70, 1, 0, 1.0, 2e-3);
    run_pair("8x256 pre", shape_of(4, 1, 64, 8, 256, 0, KVB_FRAME_PRE, KVB_ROPE_HALF), p, 70, 1, 0, 1.0, 2e-3);
    rt_shape mixture = shape_of(4, 1, 64, 8, 16, 2, KVB_FRAME_PRE, KVB_ROPE_HALF);
    mixture.key_transform = true;
    mixture.other_channels = 4;
    mixture.other_stages = 3;
    run_pair("a mixture", mixture, p, 70, 1, 0, 1.0, 2e-3);
    run_pair("a prompt", shape_of(4, 1, 64, 4, 16, 0, KVB_FRAME_BLOCK, KVB_ROPE_HALF), policy_of(0.1, KVB_SCORE_KEY_NORM, 16, 2), 70, 1,
             60, 1.0, 2e-3);
}

int main(int argc, char **argv)
{
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
        printf("SKIP the GPU cache: no CUDA device\n0 passed, 0 failed\n");
        return 7;
    }
    if (argc > 1 && strcmp(argv[1], "few") == 0)
        few();
    else if (argc > 1 && strcmp(argv[1], "mixtures") == 0)
        mixtures();
    else {
        shapes();
        mixtures();
        policies();
        calls();
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
