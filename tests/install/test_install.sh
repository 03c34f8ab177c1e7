#!/bin/sh
# `make install` into an empty root, used from there: the command, the shared library, pkg-config; and taken away again.
. "$(dirname "$0")/../cli/lib.sh"
root=$tmp/root
here=$root/opt/kv

if ! remake install DESTDIR="$root" PREFIX=/opt/kv >"$out" 2>"$err"; then
    fail "make install" "failed"
    done_testing
fi
ok "make install"
expect "the installed command runs" 0 'kvbook' "$here/bin/kvbook" --version
expect "the shared library has a soname" 0 'libkvbook\.so\.1' readelf -d "$here/lib/libkvbook.so"

if command -v pkg-config >/dev/null 2>&1; then
    export PKG_CONFIG_PATH=$here/lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$root
    flags=$(pkg-config --cflags kvbook)
    libs=$(pkg-config --libs kvbook)
    expect "pkg-config knows the version" 0 '^[0-9]+\.[0-9]' pkg-config --modversion kvbook
else
    skip "pkg-config" "pkg-config is not installed; its file was NOT tested"
    flags=-I$here/include libs="-L$here/lib -lkvbook"
fi
expect "the example compiles against it" 0 'compiled' sh -c \
    "cc -std=c11 $flags docs/examples/cache_example.c -o $tmp/example $libs && echo compiled"
expect "and attends with a book" 0 'bits per element' env LD_LIBRARY_PATH="$here/lib" "$tmp/example" tests/golden/full.kvb 40
if grep -rIl "$root" "$root" >"$out" 2>/dev/null; then fail "no file names DESTDIR" "one does"; else ok "no file names DESTDIR"; fi

remake uninstall DESTDIR="$root" PREFIX=/opt/kv >"$out" 2>"$err"
left=$(find "$root" ! -type d)
if [ -z "$left" ]; then ok "make uninstall leaves no file"; else fail "make uninstall leaves no file" "$left"; fi
done_testing
