/* The public doors to encoding and decoding: checks, then the codec. */
#include "format/base/fail.h"
#include "runtime/codec.h"

static kvb_status check_shape(const kvb_codebook *b, uint32_t head_dim, kvb_error *err)
{
    if (b == NULL)
        return kvb_fail(err, KVB_E_USAGE, "codebook", "found NULL: take one from kvb_book_codebook()");
    if (b->scaling != NULL)
        return kvb_fail(err, KVB_E_USAGE, "codebook", "a scalar quantiser, whose codes mean nothing without scales: append to a cache");
    if ((uint64_t)b->groups * b->channels != head_dim)
        return kvb_fail(err, KVB_E_USAGE, "head_dim", "found %u, but the codebook has %u groups of %u channels",
                        head_dim, b->groups, b->channels);
    return KVB_OK;
}

static kvb_status check_rows(const float *x, size_t stride, size_t n, uint32_t head_dim, kvb_error *err)
{
    if (n > 0 && (x == NULL || stride < head_dim))
        return kvb_fail(err, KVB_E_USAGE, "x", "found stride %zu at %s, expected rows at least %u apart", stride,
                        x == NULL ? "NULL" : "an array", head_dim);
    for (size_t i = 0; i < n; i++) {
        size_t bad = kvb_first_bad_value(x + i * stride, head_dim);
        if (bad < head_dim)
            return kvb_fail(err, KVB_E_CHECK, "x", "row %zu, channel %zu is %g: encode finite values only", i, bad,
                            (double)x[i * stride + bad]);
    }
    return KVB_OK;
}

kvb_status kvb_encode(const kvb_codebook *codebook, uint32_t head_dim, const float *x, size_t stride, size_t n,
                      uint32_t *codes, kvb_error *err)
{
    kvb_codec *codec = NULL;
    kvb_status status = check_shape(codebook, head_dim, err);
    if (status == KVB_OK)
        status = check_rows(x, stride, n, head_dim, err);
    if (status == KVB_OK && n > 0 && codes == NULL)
        status = kvb_fail(err, KVB_E_USAGE, "codes", "found NULL, expected room for %zu rows", n);
    if (status == KVB_OK)
        status = kvb_codec_create(codebook, head_dim, true, &codec, err);
    if (status == KVB_OK)
        kvb_codec_encode(codec, x, stride, n, codes);
    kvb_codec_destroy(codec);
    return status;
}

static kvb_status check_codes(const kvb_codebook *b, const uint32_t *codes, size_t n, kvb_error *err)
{
    for (size_t i = 0; i < n * b->groups; i++)
        if (codes[i] >= b->centroids)
            return kvb_fail(err, KVB_E_USAGE, "codes", "row %zu, group %zu is code %u, expected less than %u",
                            i / b->groups, i % b->groups, codes[i], b->centroids);
    return KVB_OK;
}

kvb_status kvb_decode(const kvb_codebook *codebook, uint32_t head_dim, const uint32_t *codes, size_t n, float *x,
                      kvb_error *err)
{
    kvb_codec *codec = NULL;
    kvb_status status = check_shape(codebook, head_dim, err);
    if (status == KVB_OK && n > 0 && (codes == NULL || x == NULL))
        status = kvb_fail(err, KVB_E_USAGE, codes == NULL ? "codes" : "x", "found NULL, expected %zu rows", n);
    if (status == KVB_OK)
        status = check_codes(codebook, codes, n, err);
    if (status == KVB_OK)
        status = kvb_codec_create(codebook, head_dim, false, &codec, err);
    if (status == KVB_OK)
        kvb_codec_decode(codec, codes, n, x);
    kvb_codec_destroy(codec);
    return status;
}
