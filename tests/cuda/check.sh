#!/bin/sh
# `make check-cuda`: the tests that need a GPU, plainly and under compute-sanitizer where it is installed. Ends with the line
# "N passed, N failed"; exit 7 where there is no device. QUICK=1 leaves the sanitizer out.
set -u
cd "$(dirname "$0")/../.."
program=${1:-${BUILD:-build}/tests/cuda/gpu_cache_test}
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null || true
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$program" | tee "$log"
status=$?
tail -n 1 "$log" | grep -q ' 0 failed$' || status=1
grep -q '^SKIP' "$log" && exit 7
[ "${QUICK:-0}" = 1 ] && exit $status
for tool in memcheck racecheck; do
    if ! command -v compute-sanitizer >/dev/null 2>&1; then
        echo "SKIP compute-sanitizer $tool: it is not installed"
    elif compute-sanitizer --tool $tool --error-exitcode 9 "$program" few >"$log" 2>&1; then
        echo "ok   compute-sanitizer $tool: $(tail -n 1 "$log")"
    else
        echo "FAIL compute-sanitizer $tool"; tail -n 40 "$log"; status=1
    fi
done
exit $status
