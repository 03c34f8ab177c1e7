#!/bin/sh
# What the runtime library offers and what it needs: the symbols of tests/runtime/exports.txt, and libz, libm, libc.
set -u
cd "$(dirname "$0")/../.." || exit 1
library=${KVB_BUILD:-build}/libkvbook.so
if [ ! -f "$library" ]; then
    echo "SKIP exports: $library is not built"
    exit 0
fi
found=$(mktemp)
trap 'rm -f "$found"' EXIT
failed=0

nm -D --defined-only "$library" | awk '{ print $NF }' | LC_ALL=C sort >"$found"
if difference=$(diff tests/runtime/exports.txt "$found"); then
    echo "ok exported symbols are those of tests/runtime/exports.txt"
else
    echo "FAIL exported symbols differ from tests/runtime/exports.txt (< listed, > found): $difference"
    failed=1
fi

needs=$(readelf -d "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
strangers=$(echo "$needs" | grep -vE '^(libz|libm|libc)\.so(\.|$)' | grep -vE '^ld-linux')
if [ -n "$needs" ] && [ -z "$strangers" ]; then
    echo "ok needs nothing but libz, libm and libc"
else
    echo "FAIL needs $needs, expected libz, libm and libc alone"
    failed=1
fi
exit $failed
