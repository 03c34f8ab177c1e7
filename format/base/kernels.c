#include "format/base/kernels_isa.h"

#include <stdlib.h>
#include <string.h>

static bool machine_has_avx2(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return false;
#endif
}

static bool machine_has_avx512(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#else
    return false;
#endif
}

const kvb_kernels *kvb_kernels_named(const char *name)
{
    if (strcmp(name, "avx512") == 0)
        return machine_has_avx512() ? kvb_kernels_avx512() : NULL;
    if (strcmp(name, "avx2") == 0)
        return machine_has_avx2() ? kvb_kernels_avx2() : NULL;
    return strcmp(name, "plain") == 0 ? kvb_kernels_plain() : NULL;
}

const kvb_kernels *kvb_kernels_best(void)
{
    const char *wish = getenv("KVB_ISA");
    const kvb_kernels *found = wish ? kvb_kernels_named(wish) : NULL;
    if (found == NULL)
        found = kvb_kernels_named("avx512");
    if (found == NULL)
        found = kvb_kernels_named("avx2");
    return found ? found : kvb_kernels_plain();
}
