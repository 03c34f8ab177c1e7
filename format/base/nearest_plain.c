/* The build for any machine: GCC's vector types, which become SSE, NEON or scalar code. */
#include "format/base/nearest_internal.h"

#include <string.h>

#define LANES 4
typedef float vec_f __attribute__((vector_size(16)));
typedef int32_t vec_i __attribute__((vector_size(16)));
#define VF vec_f
#define VI vec_i

static inline vec_f load(const float *p)
{
    vec_f v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void store(float *p, vec_f v)
{
    memcpy(p, &v, sizeof v);
}

static inline vec_f set1(float s)
{
    return (vec_f){s, s, s, s};
}

static inline vec_f select_f(vec_i mask, vec_f yes, vec_f no)
{
    return (vec_f)(((vec_i)yes & mask) | ((vec_i)no & ~mask));
}

static inline uint32_t equal_bits(vec_f a, vec_f b)
{
    vec_i same = a == b;
    return (uint32_t)((same[0] & 1) | (same[1] & 2) | (same[2] & 4) | (same[3] & 8));
}

#define V_LOAD(p) load(p)
#define V_STORE(p, v) store(p, v)
#define VI_STORE(p, v) memcpy(p, &(v), 16)
#define V_SET1(s) set1(s)
#define VI_SET1(s) ((vec_i){(int32_t)(s), (int32_t)(s), (int32_t)(s), (int32_t)(s)})
#define V_FMA(x, b, a) ((a) + (x) * (b))
#define V_NORM(x, a) ((a) + (x) * (x))
#define V_MIN(low, a) select_f((a) < (low), a, low)
#define V_MAX0(a) select_f((a) > set1(0.0f), a, set1(0.0f))
#define V_TRACK(index, a, low, number)                                   \
    do {                                                                 \
        vec_i below = (a) < (low);                                       \
        (index) = (VI_SET1(number) & below) | ((index) & ~below);        \
    } while (0)
#define V_EQUAL_BITS(a, b) equal_bits(a, b)
#define KERNEL_POINTS 4
#define KERNEL_CENTROIDS 2
#include "format/base/nearest_kernel.h"

const kvb_nearest_build *kvb_nearest_build_plain(void)
{
    static const kvb_nearest_build build = {"plain", tiles_all, search_row};
    return &build;
}
