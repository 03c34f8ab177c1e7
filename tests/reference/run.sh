#!/bin/sh
# `make check-models`: transformers into a virtual environment of the build folder, once, then every architecture against it.
# Where a CPU build of torch is at hand, name its index with PIP_INDEX_URL or PIP_EXTRA_INDEX_URL: it is a tenth of the size.
set -eu
cd "$(dirname "$0")/../.."
build=${BUILD:-build}
venv=$build/venv
stamp=$venv/requirements.txt
if ! cmp -s tests/reference/requirements.txt "$stamp"; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q -r tests/reference/requirements.txt
    cp tests/reference/requirements.txt "$stamp"
fi
log=$(mktemp)
trap 'rm -f "$log" "$log.hf"' EXIT
status=0
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1 \
    "$venv/bin/python" tests/reference/check.py --build "$build" --against transformers "$@" >"$log" 2>&1 || status=1
cat "$log"
# The same environment has what kvbook.hf needs.
KVB_BUILD=$PWD/$build KVBOOK_LIBRARY_DIR=$PWD/$build PYTHONPATH=$PWD/python HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error \
    HF_HUB_DISABLE_PROGRESS_BARS=1 "$venv/bin/python" -m pytest -q -rA -p no:cacheprovider tests/python/test_hf.py >"$log.hf" 2>&1 ||
    status=1
sed -n 's/^PASSED /ok /p; s/^FAILED /FAIL /p; s/^ERROR /FAIL /p' "$log.hf" | tee -a "$log"
grep -q '^PASSED' "$log.hf" || { cat "$log.hf"; echo "FAIL kvbook.hf: no test ran" | tee -a "$log"; }
echo "$(grep -c '^ok ' "$log" || true) passed, $(grep -c '^FAIL' "$log" || true) failed"
exit "$status"
