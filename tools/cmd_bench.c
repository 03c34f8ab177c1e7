#include <string.h>

#include "calib/suggest.h"
#include "format/base/fail.h"
#include "tools/bench.h"
#include "tools/commands.h"

typedef struct bench_args {
    kvb_common_args common;
    kvb_strings words;
    kvb_bench_options options;
} bench_args;

typedef struct benchmark {
    const char *name;
    kvb_status (*run)(const kvb_bench_options *options, kvb_progress *p, kvb_error *err);
} benchmark;

static const benchmark benchmarks[] = {{"kmeans", kvb_bench_kmeans}};
enum { BENCHMARKS = sizeof benchmarks / sizeof *benchmarks };

static const kvb_flag flags[] = {
    {"--json", KVB_FLAG_BOOL, NULL, "print one JSON object", .offset = offsetof(bench_args, options.json)},
    {"--quick", KVB_FLAG_BOOL, NULL, "a few small sizes only: proves that it runs, measures little",
     .offset = offsetof(bench_args, options.quick)},
};

static const kvb_command_spec spec = {
    .name = "bench",
    .operands = "kmeans",
    .summary = "Measure this machine beside a baseline",
    .about = "`kvbook bench kmeans` trains codebooks of many sizes beside FAISS (in a build with `make FAISS=1`) or the plain\n"
             "reference, and relates the speed to the multiply-adds that the machine does at most.",
    .args_size = sizeof(bench_args),
    .operands_offset = offsetof(bench_args, words),
    .group = {{"Flags", flags, sizeof flags / sizeof *flags, 0}, KVB_GROUP(common, "Common flags", bench_args, common)},
    .groups = 2,
};

static kvb_status run(const void *args, kvb_progress *p, kvb_error *err)
{
    const bench_args *a = args;
    const char *known[BENCHMARKS];
    if (a->words.count != 1)
        return kvb_fail(err, KVB_E_USAGE, "bench", "found %zu words, expected one: kmeans", a->words.count);
    for (int i = 0; i < BENCHMARKS; i++) {
        known[i] = benchmarks[i].name;
        if (strcmp(a->words.items[0], known[i]) == 0)
            return benchmarks[i].run(&a->options, p, err);
    }
    return kvb_fail(err, KVB_E_USAGE, a->words.items[0], "no such benchmark; did you mean %s?",
                    kvb_suggest(a->words.items[0], known, BENCHMARKS));
}

static const bench_args defaults;
const kvb_command kvb_bench_command = {&spec, &defaults, run};
