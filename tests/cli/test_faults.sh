#!/bin/sh
# Input and output that fail in the middle: every system call of the commands that write files, in turn (tests/tools/fault.c).
# FULL=1 tests/cli/test_faults.sh takes every call; without it six of those that are made often.
. "$(dirname "$0")/lib.sh"

shim=$PWD/$build/tests/fault.so
case $build in /*) shim=$build/tests/fault.so ;; esac
if grep -q 'fsanitize=' "$build/flags"; then skip "failing system calls" "a build with sanitizers"; done_testing; fi
if [ ! -e "$shim" ]; then skip "failing system calls" "no $shim: make tests builds it"; done_testing; fi
tiny_model "$tmp/tiny.gguf" 1
words "$tmp/text.txt" 60 1
input="--model $tmp/tiny.gguf --text $tmp/text.txt --ctx 64"
"$kvbook" capture $input --chunks 6 -q -o "$tmp/in.kvc"
"$kvbook" train "$tmp/in.kvc" --recipe antkv --k 4x16 --v 4x16 -q -o "$tmp/in.kvb"
head -n 4 "$tmp/text.txt" >"$tmp/prompt.txt"

faults() { # faults NAME OUTPUT COMMAND...
    name=$1; output=$2; shift 2
    if python3 tests/cli/faults.py "$shim" "${FULL:-0}" "$work" "$output" -- "$@" >"$out" 2>&1; then
        ok "$name: $(tail -n 1 "$out")"
    else
        cp "$out" "$err"; fail "$name" "$(grep -c ^FAIL "$out") of its faults"
    fi
    rm -rf "$work"; mkdir "$work"
}
faults "capture" "$work/c.kvc" "$kvbook" capture $input --chunks 2 --sensitivity 1 -q -o "$work/c.kvc"
faults "train" "$work/b.kvb" "$kvbook" train "$tmp/in.kvc" --recipe antkv --k 4x16 --v 4x16 --checkpoint "$work/b.ckpt" -q -o "$work/b.kvb"
"$kvbook" capture $input --chunks 2 --queries --sensitivity 0 -q -o "$tmp/q.kvc"
faults "capture --queries" "$work/c.kvc" "$kvbook" capture $input --chunks 2 --queries --sensitivity 0 -q -o "$work/c.kvc"
faults "train with clips" "$work/b.kvb" "$kvbook" train "$tmp/q.kvc" --recipe skvq --bits 2 -q -o "$work/b.kvb"
faults "pack" "$work/p.kvp" "$kvbook" pack --model "$tmp/tiny.gguf" --book "$tmp/in.kvb" --text "$tmp/prompt.txt" -q -o "$work/p.kvp"
faults "report" "$work/r.html" "$kvbook" report "$tmp/in.kvb" -q -o "$work/r.html"
faults "compare" "$work/t.md" "$kvbook" compare $input --chunks 2 --calib-text "$tmp/text.txt" --calib-chunks 6 --recipes antkv,kivi --bits 4 \
    -q -o "$work/t.json"
done_testing
