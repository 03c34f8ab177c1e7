#!/bin/sh
# What the command says about itself: every --help against the flags in the source and the flags that were promised;
# colours on a terminal; dates.
. "$(dirname "$0")/lib.sh"

# Why the help text of the last command is not fit to print; nothing where it is.
help_flaws() {
    [ ! -s "$err" ] || echo "talks on stderr;"
    awk 'length($0) > 120 { print "line " NR " has " length($0) " columns;" }' "$out"
    awk '/ $/ { print "line " NR " ends in blanks;" }' "$out"
    if grep -q '	' "$out"; then echo "holds a tab;"; fi
}

check_help() { # check_help NAME PATTERN ARGS...
    help_name=$1 help_pattern=$2
    shift 2
    expect "$help_name" 0 "$help_pattern" "$kvbook" "$@"
    flaws=$(help_flaws)
    if [ -z "$flaws" ]; then ok "$help_name fits 120 columns"; else fail "$help_name fits 120 columns" "$flaws"; fi
}

# The flags in a command's own table and in the groups that it takes.
flags_in_source() { # flags_in_source COMMAND
    {
        cat "tools/cmd_$1.c"
        for group in $(grep -o 'KVB_GROUP([a-z]*' "tools/cmd_$1.c" | cut -d'(' -f2); do
            sed -n "/^const kvb_flag kvb_${group}_flags/,/^};/p" tools/flags.c
        done
    } | grep -o '{"--[a-z-]*"' | tr -d '{"'
}

flags_in_help() {
    grep -oE '^  (-[a-z], )?--[a-z-]+' "$out" | grep -oE -- '--[a-z-]+'
}

check_flags() { # check_flags COMMAND: of its help in $out
    flags_in_help | sort >"$tmp/shown"
    flags_in_source "$1" | sort >"$tmp/known"
    if [ -s "$tmp/shown" ] && cmp -s "$tmp/shown" "$tmp/known"; then
        ok "help of $1 names every flag once"
    else
        fail "help of $1 names every flag once" "$(diff "$tmp/shown" "$tmp/known" | tr '\n' ' ')"
    fi
    unknown=
    # Whatever else is wrong with a flag alone, such as a missing value, it must not be unknown.
    for flag in $(grep -vE '^--(help|version)$' "$tmp/shown"); do
        "$kvbook" "$1" "$flag" </dev/null 2>&1 | grep -q 'unknown flag' && unknown="$unknown $flag"
    done
    if [ -z "$unknown" ]; then ok "$1 knows the flags of its help"; else fail "$1 knows the flags of its help" "not$unknown"; fi
}

check_contract() { # check_contract COMMAND FLAG...: names that stay from version to version
    "$kvbook" "$1" --help >"$out" 2>"$err"
    contract=$1 missing=
    shift
    for flag in "$@"; do
        grep -qE -- "^  (-[a-z], )?$flag([ ,]|\$)" "$out" || missing="$missing $flag"
    done
    if [ -z "$missing" ]; then ok "$contract has the promised flags"; else fail "$contract has the promised flags" "not$missing"; fi
}

check_help "kvbook --help" '^Commands:' --help
names=$(sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p' "$out")
check_help "kvbook -h" '^Commands:' -h
check_help "kvbook help" '^Commands:' help
for file in tools/cmd_*.c; do
    name=${file#tools/cmd_}; name=${name%.c}
    if echo "$names" | grep -qx "$name"; then ok "kvbook --help lists $name"; else fail "kvbook --help lists $name" "it does not"; fi
done
expect "a flag and what it does share a line" 0 '^  --model FILE              the model' "$kvbook" calibrate --help
expect "a long flag has a line of its own" 0 '^  --allow-tokenizer-mismatch$' "$kvbook" eval --help
for name in $names; do
    check_help "help of $name" "^usage: kvbook $name" "$name" --help
    check_flags "$name"
done

text="--model --text --ctx --chunks --skip --bos --no-bos"
recipe="--recipe --bits --k --v --seed"
policy="--anchors --anchor-score --window --sinks --exact"
common="--quiet --verbose --no-progress --version --help"
check_contract capture $text --output --dry-run $common
check_contract train $recipe --output --dry-run $common
check_contract calibrate $text $recipe $policy --tune --output --dry-run $common
check_contract tune $text --tune --output $common
check_contract eval $text --book $recipe --tune $policy --anchor-protocol --json $common
check_contract compare $text --recipes --bits --calib-text $policy --anchor-protocol --seed --output $common
check_contract generate --model --prompt --tokens --book $policy $common
for letter in -o:calibrate -o:capture -o:train -n:generate -q:eval -v:eval; do
    "$kvbook" "${letter#*:}" "${letter%:*}" </dev/null >"$out" 2>&1
    if grep -q 'unknown flag' "$out"; then fail "$letter" "is an unknown flag"; else ok "$letter is a flag"; fi
done

# Colour is for terminals, and not where NO_COLOR is set.
escape=$(printf '\033')
refuse "an error without a terminal" 2 'unknown command' "$kvbook" nonsense
if grep -q "$escape" "$err"; then fail "no colour without a terminal" "found an escape"; else ok "no colour without a terminal"; fi
on_terminal() { # on_terminal [VARIABLE=VALUE]: the error of a wrong command on a terminal
    env TERM=xterm "$@" script -qec "$kvbook nonsense" /dev/null </dev/null 2>&1
}
if command -v script >/dev/null; then
    case $(on_terminal) in
    *"$escape[31m"*) ok "an error is red on a terminal" ;;
    *) fail "an error is red on a terminal" "it is not" ;;
    esac
    case $(on_terminal NO_COLOR=1) in
    *"$escape"*) fail "NO_COLOR" "found an escape" ;;
    *error*) ok "NO_COLOR" ;;
    *) fail "NO_COLOR" "no error" ;;
    esac
else
    skip "colour on a terminal" "no script(1) here"
fi

# The date of a book: only ever SOURCE_DATE_EPOCH, read back by the decoder that shares no code with kvbook.
tiny_model "$tmp/tiny.gguf" 1
words "$tmp/text.txt" 40 1
dated() { # dated FILE DATE: a book made at that date; at none where it is empty
    env ${2:+SOURCE_DATE_EPOCH="$2"} "$kvbook" calibrate -q --model "$tmp/tiny.gguf" --text "$tmp/text.txt" --ctx 64 \
        --chunks 2 --recipe cq --k 8x16 --v 8x16 -o "$tmp/$1.kvb" 2>"$err" || fail "calibrate $1" "exit code $?"
    python3 spec/kvb_decode.py "$tmp/$1.kvb" >"$tmp/$1.json"
}
dated undated ''
dated dated 1000000000
dated again 1000000000
dated noon noon
json "SOURCE_DATE_EPOCH becomes the date" "$tmp/dated.json" 'd["meta"]["created"] == "2001-09-09T01:46:40Z"'
json "no date without it" "$tmp/undated.json" '"created" not in d["meta"] and d["meta"]["tool"]'
same "the same date gives the same bytes" "$tmp/dated.kvb" "$tmp/again.kvb"
same "a date that is no number is none" "$tmp/undated.kvb" "$tmp/noon.kvb"
done_testing
