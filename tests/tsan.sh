#!/bin/sh
# k-means under ThreadSanitizer. gcc's libgomp is not instrumented, so every region's end reads as a race there; clang's
# libomp tells the sanitizer what it synchronises, through archer.
#
# First a planted race must be reported: a sanitizer that sees nothing would pass everything.
set -eu
cd "$(dirname "$0")/.."
clang=${TSAN_CC:-clang}
build=${TSAN_BUILD:-build/tsan}
if ! command -v "$clang" >/dev/null || ! echo 'int main(void){return 0;}' | "$clang" -fopenmp -fsanitize=thread -x c - -o /dev/null 2>/dev/null; then
    echo "SKIP k-means under ThreadSanitizer: no $clang with libomp and its sanitizers here (Debian: clang libomp-dev)"
    exit 0
fi
flags="-Iinclude -I. -D_GNU_SOURCE -std=c11 -O1 -g -fopenmp -fsanitize=thread -D__SANITIZE_THREAD__"
export TSAN_OPTIONS="ignore_noninstrumented_modules=1 exitcode=66" ARCHER_OPTIONS=verbose=1
rm -rf "$build"
mkdir -p "$build"

compile() { # compile FILE: its object is $build/NAME.o
    vector=""
    case "$1" in
    *_avx2.c) vector="-mavx2 -mfma -mf16c" ;;
    *_avx512.c) vector="-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c" ;;
    esac
    # shellcheck disable=SC2086
    "$clang" $flags $vector -c -o "$build/$(basename "$1" .c).o" "$1"
}

cat >"$build/planted.c" <<'C'
int main(void)
{
    long sum = 0;
#pragma omp parallel for num_threads(4)
    for (int i = 0; i < 100000; i++)
        sum += i;
    return sum == 1;
}
C
"$clang" $flags -o "$build/planted" "$build/planted.c"
if "$build/planted" >"$build/planted.log" 2>&1 || ! grep -q 'data race' "$build/planted.log"; then
    echo "FAIL a planted race is not reported"; exit 1
fi
echo "ok   a planted race is reported"

for file in kmeans/*.c format/base/*.c; do compile "$file"; done
objects=$(ls "$build"/*.o)
status=0
for test in test_kmeans test_kmeans_errors; do
    compile "tests/kmeans/$test.c"
    # shellcheck disable=SC2086
    "$clang" -fopenmp -fsanitize=thread -o "$build/$test" "$build/$test.o" $objects -lcmocka -lz -lm
    if "$build/$test" >"$build/$test.log" 2>&1 && grep -q '^Archer detected' "$build/$test.log"; then
        echo "ok   $test: no race"
    else
        echo "FAIL $test"; cat "$build/$test.log"; status=1
    fi
done
exit $status
