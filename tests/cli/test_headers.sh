#!/bin/sh
# Every public header compiles alone as C11 and as C++17, and the examples link as a user's program would.
cd "$(dirname "$0")/../.."
failed=0
for header in include/kvbook/*.h; do
    name=$(basename "$header")
    for language in "c -std=c11" "c++ -std=c++17"; do
        # shellcheck disable=SC2086
        if printf '#include <kvbook/%s>\n' "$name" | ${CC:-cc} -Iinclude -Wall -Wextra -Wpedantic -Werror -fsyntax-only -x $language - 2>&1; then
            echo "ok $name as $language"
        else
            echo "FAIL $name as $language"; failed=1
        fi
    done
done
for example in docs/examples/*.c; do
    name=$(basename "$example" .c)
    if [ -x "${KVB_BUILD:-build}/docs/examples/$name" ]; then echo "ok $name links"; else echo "FAIL $name: not built"; failed=1; fi
done
exit $failed
