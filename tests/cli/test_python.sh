#!/bin/sh
# The Python package from the source tree, over the libraries of this build, where a Python with numpy and pytest is.
. "$(dirname "$0")/lib.sh"

python_with "numpy, pytest"
if [ -z "$python" ]; then
    skip "the Python package" "no python3 with numpy and pytest (python3-numpy, python3-pytest); it was NOT tested"
else
    expect "the Python package" 0 '[0-9]+ passed' env KVB_BUILD="$PWD/$build" KVBOOK_LIBRARY_DIR="$PWD/$build" \
        PYTHONPATH="$PWD/python" PYTHONDONTWRITEBYTECODE=1 "$python" -m pytest -q -p no:cacheprovider tests/python
fi
# kvbook.hf where `make check-models` has installed torch and transformers.
if [ -x "$build/venv/bin/python" ] && "$build/venv/bin/python" -c 'import transformers, torch, pytest' 2>/dev/null; then
    expect "kvbook.hf" 0 '[0-9]+ passed' env KVB_BUILD="$PWD/$build" KVBOOK_LIBRARY_DIR="$PWD/$build" PYTHONPATH="$PWD/python" \
        PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 "$build/venv/bin/python" -m pytest -q -p no:cacheprovider tests/python/test_hf.py
else
    skip "kvbook.hf" "no torch and transformers in $build/venv (make check-models installs them); it was NOT tested"
fi
done_testing
