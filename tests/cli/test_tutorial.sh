#!/bin/sh
# The commands of docs/tutorial.md, as they stand there, on a small model.
. "$(dirname "$0")/lib.sh"

tiny_model "$tmp/tiny.gguf" 1
words "$tmp/train.txt" 400 1
words "$tmp/test.txt" 200 2
words "$tmp/prompt.txt" 2 3
MODEL=$tmp/tiny.gguf TRAIN=$tmp/train.txt TEST=$tmp/test.txt PROMPT=$tmp/prompt.txt
export MODEL TRAIN TEST PROMPT
case $kvbook in /*) tool=$kvbook ;; *) tool=$PWD/$kvbook ;; esac
mkdir "$tmp/bin" && ln -s "$tool" "$tmp/bin/kvbook"
# The tiny model's context is short, and its forty words fill few centroids: the rest of each command is the document's.
awk '/^```sh/ { on = 1; next } /^```/ { on = 0 } on' docs/tutorial.md >"$tmp/commands"
count=0
while read -r line; do
    count=$((count + 1))
    case $line in *calibrate* | *compare* | *eval*) line="$line --ctx 128" ;; esac
    case $line in *--checkpoint*) line="$line --k 4x8 --v 4x8" ;; esac
    if (cd "$work" && PATH=$tmp/bin:$PATH sh -c "$line") >"$out" 2>"$err" </dev/null; then
        ok "tutorial: $line"
    else
        fail "tutorial: $line" "$(cat "$err")"
    fi
done <"$tmp/commands"
[ "$count" -ge 9 ] && ok "the tutorial has commands" || fail "the tutorial has commands" "$count found"
for file in model.kvb model.html model-table.md model-table.svg prompt.kvp; do
    [ -s "$work/$file" ] && ok "it leaves $file" || fail "it leaves $file" "there is none"
done
done_testing
