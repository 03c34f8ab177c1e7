#!/bin/sh
# Builds every fuzz target with clang and libFuzzer and runs each for some seconds (the argument, 60 without one).
# New inputs go to build/fuzz/corpus/NAME, never into the tree; a crash leaves its input in build/fuzz and fails.
set -eu
cd "$(dirname "$0")/../.."
seconds=${1:-60}
clang=${CLANG:-clang}
build=build/fuzz
if ! command -v "$clang" >/dev/null 2>&1; then
    echo "fuzz: $clang is missing; install clang or set CLANG" >&2
    exit 2
fi
sanitizers=address,undefined
make -j"$(nproc)" CC="$clang" OPT=-O1 SAN=fuzzer-no-link,$sanitizers BUILD=$build $build/libkvb-all.a $build/libtest.a
for source in tests/fuzz/fuzz_*.c; do
    name=$(basename "$source" .c)
    make CC="$clang" OPT=-O1 SAN=fuzzer-no-link,$sanitizers BUILD=$build "$build/obj/tests/fuzz/$name.o"
    "$clang" -fsanitize=fuzzer,$sanitizers -fno-sanitize-recover=all -fopenmp -o "$build/$name" \
        "$build/obj/tests/fuzz/$name.o" $build/libtest.a $build/libkvb-all.a -lopenblas -lpcre2-8 -lz -lm
    mkdir -p "$build/corpus/${name#fuzz_}"
    echo "== $name, $seconds s"
    "$build/$name" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 \
        -artifact_prefix="$build/$name-" "$build/corpus/${name#fuzz_}" "tests/fuzz/corpus/${name#fuzz_}"
done
echo "fuzz: all targets ran without a finding"
