#!/bin/sh
# Freezes a version of the file formats: tests/golden/freeze.sh 1.0 copies the golden files into tests/golden/v1.0, makes a capture
# beside them with the command in build/, and writes the sums of all of it and of tests/golden-errors/. What is there already is never
# written again: of a frozen version files are only added, until it is released. tests/cli/test_frozen.sh reads them.
set -eu
cd "$(dirname "$0")/../.."
version=${1:?usage: tests/golden/freeze.sh VERSION}
to=tests/golden/v$version
build=${BUILD:-build}
mkdir -p "$to"
for f in tests/golden/*.kvb tests/golden/*.kvp; do
    case $f in */newer-minor.*) continue ;; esac # made up: of a version to come
    [ -e "$to/$(basename "$f")" ] || cp "$f" "$to/"
done
if [ ! -e "$to/capture.kvc" ]; then
    tmp=$(mktemp -d)
    trap 'rm -rf "$tmp"' EXIT
    "$build/tests/make_tiny_gguf" "$tmp/tiny.gguf" 1
    i=0
    while [ $i -lt 60 ]; do echo "word$i again word$((i * 7 % 13))"; i=$((i + 1)); done >"$tmp/text"
    "$build/kvbook" capture --model "$tmp/tiny.gguf" --text "$tmp/text" --ctx 16 --chunks 2 --sensitivity 1 --fisher -q -o "$to/capture.kvc"
fi
(cd "$to" && for f in *.kv?; do sha256sum "$f"; done >SHA256SUMS)
(cd tests/golden-errors && for f in *.kv*; do sha256sum "$f"; done) >"$to/ERRORS.SHA256SUMS"
(cd "$to" && for f in *.kvb; do
    printf '%s %s\n' "$f" "$("../../../$build/kvbook" info --json "$f" | python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])')"
done >IDENTITIES)
