#!/bin/sh
# On a terminal every long step draws how far it is and how long it will take; without one, or with --no-progress, none does.
. "$(dirname "$0")/lib.sh"

command -v script >/dev/null 2>&1 || { skip "progress on a terminal" "no script(1) here"; done_testing; exit; }
tiny_model "$tmp/tiny.gguf" 1
words "$tmp/text.txt" 300 1
words "$tmp/prompt.txt" 2 2
model="--model $tmp/tiny.gguf --ctx 128"

bar() { # bar NAME COMMAND...: draws with an ETA on a terminal, not with --no-progress
    this=$1
    shift
    script -qec "env TERM=xterm $kvbook $*" /dev/null </dev/null >"$out" 2>"$err"
    if grep -q 'ETA [0-9?]' "$out"; then ok "$this has a bar"; else fail "$this has a bar" "$(tail -n 1 "$out")"; fi
    script -qec "env TERM=xterm $kvbook $* --no-progress" /dev/null </dev/null >"$out" 2>"$err"
    if grep -q 'ETA' "$out"; then fail "$this is quiet with --no-progress" "it draws"; else ok "$this is quiet with --no-progress"; fi
}
bar capture capture $model --text "$tmp/text.txt" --chunks 16 -o "$work/a.kvc"
bar train train "$work/a.kvc" --recipe antkv --k 4x8 --v 4x8 -o "$work/a.kvb"
bar calibrate calibrate $model --text "$tmp/text.txt" --chunks 16 --recipe antkv --k 4x8 --v 4x8 -o "$work/b.kvb"
bar eval eval $model --text "$tmp/text.txt" --chunks 8 --book "$work/a.kvb"
bar compare compare $model --text "$tmp/text.txt" --chunks 4 --calib-chunks 4 --recipes antkv,cq --bits 4 -o "$work/t.json"
bar pack pack --model "$tmp/tiny.gguf" --text "$tmp/prompt.txt" --book "$work/a.kvb" -o "$work/a.kvp"
bar tune tune "$work/a.kvb" $model --text "$tmp/text.txt" --chunks 8 -o "$work/c.kvb"
done_testing
