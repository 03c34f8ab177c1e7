#!/bin/sh
# Installs the Python package into an environment of its own, as a user does, and tests it from there. BUILD: the build.
set -eu
cd "$(dirname "$0")/../.."
build=${BUILD:-build}
venv=$build/venv-python
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" -q install pytest
KVB_BUILD=$build "$venv/bin/pip" -q install --force-reinstall --no-deps ./python
"$venv/bin/pip" -q install 'numpy>=1.24'
KVB_BUILD=$(cd "$build" && pwd) "$venv/bin/python" -m pytest -q tests/python
