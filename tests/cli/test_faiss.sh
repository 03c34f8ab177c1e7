#!/bin/sh
# --kmeans faiss: trains in a build with FAISS, is refused by name in one without.
. "$(dirname "$0")/lib.sh"

refuse "--kmeans of nothing known" 2 '--kmeans: found "fais", did you mean faiss\?' \
    "$kvbook" train x.kvc -o "$work/b" --recipe antkv --bits 1 --kmeans fais
refuse "--kmeans without a recipe" 2 '--kmeans: means nothing without --recipe' "$kvbook" eval --model x --text y --kmeans own
if ! grep -q KVB_FAISS "$build/flags"; then
    for command in "train x.kvc -o $work/b" "calibrate --model x --text y -o $work/b" "eval --model x --text y --calib-text z"; do
        refuse "faiss in ${command%% *} without it" 2 '--kmeans: faiss is not in this build: .*make FAISS=1' \
            "$kvbook" $command --recipe antkv --bits 1 --kmeans faiss
    done
    done_testing
fi
tiny_model "$tmp/m.gguf" 1
words "$tmp/t.txt" 200 1
for backend in own faiss; do
    expect "calibrate --kmeans $backend" 0 'relative error' "$kvbook" calibrate --model "$tmp/m.gguf" --text "$tmp/t.txt" \
        --ctx 64 --chunks 16 --recipe antkv --k 4x16 --v 4x16 --kmeans $backend -o "$tmp/$backend.kvb"
done
expect "verify of a book by faiss" 0 . "$kvbook" verify "$tmp/faiss.kvb"
"$kvbook" info --json "$tmp/faiss.kvb" >"$tmp/info.json"
expect "the book says who trained it" 0 '"backend": ?"faiss"' cat "$tmp/info.json"
expect "eval --recipe --kmeans faiss" 0 . "$kvbook" eval --model "$tmp/m.gguf" --text "$tmp/t.txt" --ctx 64 --chunks 2 \
    --calib-text "$tmp/t.txt" --calib-chunks 16 --recipe antkv --k 4x16 --v 4x16 --kmeans faiss
done_testing
