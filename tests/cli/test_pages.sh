#!/bin/sh
# The manual and the completions: every sub-command and every flag that --help lists stands in all three, and they are well formed.
. "$(dirname "$0")/lib.sh"

remake man >"$out" 2>"$err" || fail "make man" "failed"
pages=$build/man
names=$("$kvbook" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p')

# What bash would offer for the words given, the last of which is being typed; one a line.
bash_offers() {
    bash -c '. "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _kvbook; printf "%s\n" "${COMPREPLY[@]}"' "$pages/kvbook.bash" "$@" 2>"$err"
}
bash_offers kvbook '' | sort >"$tmp/offered"
for name in $names; do
    grep -qx "$name" "$tmp/offered" || fail "bash offers the command $name" "it does not"
    grep -q "^        '$name:" "$pages/_kvbook" || fail "zsh offers the command $name" "it does not"
    "$kvbook" "$name" --help | grep -oE '^  (-[a-z], )?--[a-z-]+' | grep -oE -- '--[a-z-]+' | sort >"$tmp/flags"
    [ -s "$tmp/flags" ] || fail "flags of $name" "there are none"
    bash_offers kvbook "$name" -- | sort >"$tmp/offered_flags"
    if cmp -s "$tmp/flags" "$tmp/offered_flags"; then ok "bash offers the flags of $name"; else
        fail "bash offers the flags of $name" "$(diff "$tmp/flags" "$tmp/offered_flags" | tr '\n' ' ')"; fi
    sed -n "/^    $name)/,/;;/p" "$pages/_kvbook" | grep -oE "['*,{]--[a-z-]+=?(\\[|\\})" | grep -oE -- '--[a-z-]+' | sort >"$tmp/zsh_flags"
    if cmp -s "$tmp/flags" "$tmp/zsh_flags"; then ok "zsh offers the flags of $name"; else
        fail "zsh offers the flags of $name" "$(diff "$tmp/flags" "$tmp/zsh_flags" | tr '\n' ' ')"; fi
    grep -oE '^(\*-[a-z]\*, )?\*--[a-z-]+\*' "$pages/kvbook-$name.1.scd" | grep -oE -- '--[a-z-]+' | sort >"$tmp/man_flags"
    if cmp -s "$tmp/flags" "$tmp/man_flags"; then ok "kvbook-$name(1) has its flags"; else
        fail "kvbook-$name(1) has its flags" "$(diff "$tmp/flags" "$tmp/man_flags" | tr '\n' ' ')"; fi
    grep -q "kvbook-$name\\*(1)" "$pages/kvbook.1.scd" || fail "kvbook(1) names kvbook-$name" "it does not"
done

offers() { # offers NAME EXPECTED WORD...: among others
    this=$1 expected=$2
    shift 2
    if bash_offers "$@" | grep -qx -- "$expected"; then ok "$this"; else fail "$this" "not $expected"; fi
}
for recipe in calib/recipes/*.json; do
    recipe=$(basename "$recipe" .json)
    offers "bash offers the recipe $recipe" "$recipe" kvbook calibrate --recipe "$recipe"
    grep -q "recipe:([^)]*$recipe" "$pages/_kvbook" || fail "zsh offers the recipe $recipe" "it does not"
done
offers "bash offers choices" key-norm kvbook eval --anchor-score k
offers "bash offers files" Makefile kvbook info Make
offers "bash offers files for a letter" Makefile kvbook train -o Make

if command -v zsh >/dev/null 2>&1; then
    if zsh -n "$pages/_kvbook" 2>"$err"; then ok "zsh reads its completion"; else fail "zsh reads its completion" "it does not"; fi
else
    skip "zsh" "zsh is not installed; its completion was NOT read by it"; fi
if command -v mandoc >/dev/null 2>&1 && command -v scdoc >/dev/null 2>&1; then
    mandoc -Tlint "$pages"/*.1 >"$out" 2>&1
    if [ -s "$out" ]; then fail "the manual is clean for mandoc" "$(head -n 3 "$out")"; else ok "the manual is clean for mandoc"; fi
    expect "kvbook-eval(1) reads well" 0 'tokens of a chunk' mandoc -Tascii -Owidth=100 "$pages/kvbook-eval.1"
else
    skip "the manual" "scdoc and mandoc are not both installed; its pages were NOT checked"
fi
done_testing
