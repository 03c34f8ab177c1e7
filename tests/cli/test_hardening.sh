#!/bin/sh
# What the default build is hardened with (SECURITY.md), read from the command and the library as they were linked.
. "$(dirname "$0")/lib.sh"
library=$build/libkvbook.so

command -v readelf >/dev/null || { skip "hardening" "no readelf here"; done_testing; }
if nm "$kvbook" 2>/dev/null | grep -q '__asan_init\|__tsan_init'; then
    skip "hardening" "a sanitizer build has its own checks instead"
    done_testing
fi

holds() { # holds NAME PATTERN READELF-FLAGS FILE
    expect "$1" 0 "$2" readelf -W $3 "$4"
}
for file in "$kvbook" "$library"; do
    name=$(basename "$file")
    holds "$name lies where the loader wants (PIE)" 'Type: +DYN ' -h "$file"
    holds "$name has a read-only relocation segment" 'GNU_RELRO' -l "$file"
    holds "$name binds at start (full RELRO)" 'BIND_NOW|FLAGS.* NOW' -d "$file"
    holds "$name has no executable stack" 'GNU_STACK.* RW +0x' -l "$file"
    holds "$name has stack protectors" '__stack_chk_fail' --dyn-syms "$file"
    holds "$name has checked copies (FORTIFY)" '__(memcpy|snprintf|vsnprintf|fprintf|printf|read)_chk' --dyn-syms "$file"
    if readelf -W -l "$file" | grep -q 'LOAD.* RWE '; then
        fail "$name has no page both writable and executable" "it does"
    else
        ok "$name has no page both writable and executable"
    fi
done
done_testing
