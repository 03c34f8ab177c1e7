#!/bin/sh
# `make deb`: the package is free of lintian's errors, unpacks into an empty root and is used from there.
. "$(dirname "$0")/../cli/lib.sh"
root=$tmp/root

for tool in dpkg-deb dpkg-shlibdeps scdoc; do
    command -v "$tool" >/dev/null 2>&1 || { skip "make deb" "no $tool here; the Debian package was NOT built"; done_testing; exit; }
done
if ! remake deb >"$out" 2>"$err"; then
    fail "make deb" "failed"
    done_testing
fi
deb=$(tail -n 1 "$out")
expect "make deb" 0 "^ Depends: .*libopenblas0" dpkg-deb -I "$deb"
if command -v lintian >/dev/null 2>&1; then
    lintian --fail-on error "$deb" >"$out" 2>"$err"
    if grep '^E:' "$out" >"$tmp/errors"; then fail "lintian finds no error" "$(head -n 1 "$tmp/errors")"; else ok "lintian finds no error"; fi
else
    skip "lintian" "it is not installed; the package was NOT checked by it"
fi

dpkg-deb -x "$deb" "$root"
expect "the command in the package runs" 0 '^kvbook [0-9]' "$root/usr/bin/kvbook" --version
tiny_model "$tmp/tiny.gguf" 1
words "$tmp/text.txt" 40 1
expect "and calibrates" 0 'wrote' "$root/usr/bin/kvbook" calibrate --model "$tmp/tiny.gguf" --text "$tmp/text.txt" --ctx 64 --chunks 2 \
    --recipe cq --k 8x16 --v 8x16 -o "$work/tiny.kvb"
flags="-I$root/usr/include -L$root/usr/lib -lkvbook"
expect "the example compiles against the package" 0 'compiled' sh -c "cc -std=c11 docs/examples/cache_example.c -o $tmp/example $flags && echo compiled"
expect "and attends with a book" 0 'bits per element' env LD_LIBRARY_PATH="$root/usr/lib" "$tmp/example" tests/golden/full.kvb 40
for file in usr/share/man/man1/kvbook-eval.1.gz usr/share/bash-completion/completions/kvbook usr/share/zsh/vendor-completions/_kvbook \
    usr/lib/pkgconfig/kvbook.pc usr/share/doc/kvbook/copyright; do
    if [ -s "$root/$file" ]; then ok "the package has $file"; else fail "the package has $file" "it does not"; fi
done
if grep -q '^prefix=/usr$' "$root/usr/lib/pkgconfig/kvbook.pc"; then ok "its pkg-config file is for /usr"; else fail "its pkg-config file is for /usr" "it is not"; fi
done_testing
