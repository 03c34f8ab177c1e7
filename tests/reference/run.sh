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
trap 'rm -f "$log"' EXIT
status=0
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1 \
    "$venv/bin/python" tests/reference/check.py --build "$build" --against transformers "$@" >"$log" 2>&1 || status=1
cat "$log"
echo "$(grep -c '^ok ' "$log" || true) passed, $(grep -c '^FAIL' "$log" || true) failed"
exit "$status"
