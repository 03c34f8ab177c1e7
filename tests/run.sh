#!/bin/sh
# Runs every cmocka program, fuzz corpus and command-line test of one build and adds up what they say.
# BUILD names the build folder. Ends with the line "N passed, N failed".
set -u
cd "$(dirname "$0")/.."
build=${BUILD:-build}
export KVB_BUILD="$build"
export OPENBLAS_NUM_THREADS=1
passed=0
failed=0
skipped=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

count() { # count NAME STATUS: adds up the cmocka lines of $log
    ok=$(grep -c '^\[       OK \]' "$log")
    bad=$(grep '^\[  FAILED  \]' "$log" | grep -vcE '[0-9]+ test\(s\)')
    # cmocka lists each failed test twice: where it fails and in the summary.
    bad=$(((bad + 1) / 2))
    skip=$(grep -c '^\[  SKIPPED \]' "$log")
    skip=$(((skip + 1) / 2))
    if [ "$2" -ne 0 ] && [ "$bad" -eq 0 ]; then bad=1; fi
    if [ "$2" -eq 0 ] && [ "$ok" -eq 0 ] && [ "$skip" -eq 0 ]; then bad=1; echo "$1: ran no test" >&2; fi
    passed=$((passed + ok))
    failed=$((failed + bad))
    skipped=$((skipped + skip))
    if [ "$bad" -ne 0 ]; then echo "FAIL $1"; cat "$log"; else echo "ok   $1: $ok passed${skip:+, $skip skipped}"; fi
    grep '^SKIP' "$log" || true
}

for program in "$build"/tests/*/test_*; do
    case "$program" in *.o | *.d) continue ;; esac
    [ -x "$program" ] || continue
    "$program" >"$log" 2>&1 </dev/null
    count "${program#"$build"/}" $?
done
for program in "$build"/tests/fuzz/fuzz_*; do
    [ -x "$program" ] || continue
    name=$(basename "$program")
    if "$program" tests/fuzz/corpus/"${name#fuzz_}" >"$log" 2>&1; then
        passed=$((passed + 1)); echo "ok   fuzz corpus $name: $(tail -n 1 "$log")"
    else
        failed=$((failed + 1)); echo "FAIL fuzz corpus $name"; cat "$log"
    fi
done
# Scripts print one line a check, "ok ..." or "FAIL ..." or "SKIP ...".
for script in ${SCRIPTS:-tests/cli/test_*.sh tests/install/test_*.sh}; do
    [ -e "$script" ] || continue
    "$script" >"$log" 2>&1 </dev/null
    status=$?
    ok=$(grep -c '^ok ' "$log"); bad=$(grep -c '^FAIL' "$log")
    skip=$(grep -c '^SKIP' "$log")
    if [ "$status" -ne 0 ] && [ "$bad" -eq 0 ]; then bad=1; fi
    if [ $((ok + bad + skip)) -eq 0 ]; then bad=1; echo "$script: checked nothing" >"$log"; fi
    passed=$((passed + ok)); failed=$((failed + bad)); skipped=$((skipped + skip))
    if [ "$bad" -ne 0 ]; then echo "FAIL $script"; cat "$log"; else echo "ok   $script: $ok passed"; fi
    grep '^SKIP' "$log" || true
done
echo "$passed $failed $skipped" >"$build/test-counts"
[ "$skipped" -eq 0 ] || echo "$skipped skipped (each named above)"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
