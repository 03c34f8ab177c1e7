#!/bin/sh
# Captures of parts of a text: trained together they give the bytes of one capture of all of it, however it was cut.
. "$(dirname "$0")/lib.sh"

tiny_model "$tmp/tiny.gguf" 1
tiny_model "$tmp/other.gguf" 2
words "$tmp/train.txt" 400 1
words "$tmp/more.txt" 400 2
input="--model $tmp/tiny.gguf --text $tmp/train.txt --ctx 128"

"$kvbook" capture $input --chunks 24 --skip 1 --fisher --queries -q -o "$work/whole.kvc"
# 24 chunks from chunk 1 on, cut at three places.
cut() { "$kvbook" capture $input --skip "$1" --chunks "$2" --fisher --queries -q -o "$work/$3.kvc"; } # cut FIRST COUNT NAME
cut 1 13 a; cut 14 1 b; cut 15 10 c
for recipe in 'best --bits 2' 'antkv --bits 1 --k 4x16 --v 4x16' 'cq --bits 2' 'kvquant --bits 2' 'skvq --bits 2' 'best-fast --bits 1 --allocate'; do
    expect "one capture, $recipe" 0 wrote "$kvbook" train "$work/whole.kvc" --recipe $recipe -o "$work/one.kvb"
    expect "three captures, $recipe" 0 wrote "$kvbook" train "$work/c.kvc" "$work/a.kvc" "$work/b.kvc" --recipe $recipe -o "$work/three.kvb"
    same "the same bytes, $recipe" "$work/one.kvb" "$work/three.kvb"
done
expect "several captures and a checkpoint" 0 wrote "$kvbook" train "$work/a.kvc" "$work/b.kvc" "$work/c.kvc" \
    --recipe best-fast --bits 1 --allocate --checkpoint "$work/ck" -o "$work/kept.kvb"
same "the same bytes with a checkpoint" "$work/one.kvb" "$work/kept.kvb"

train="--recipe best --bits 2 -o $work/x.kvb"
refuse "a part is missing" 6 'chunks 14 to 14 are in neither' "$kvbook" train "$work/a.kvc" "$work/c.kvc" $train
refuse "a part twice" 6 'both hold chunk 1;' "$kvbook" train "$work/a.kvc" "$work/a.kvc" "$work/b.kvc" $train
cut 10 8 d
refuse "parts that overlap" 6 'both hold chunk 10' "$kvbook" train "$work/a.kvc" "$work/d.kvc" $train
part="--skip 14 --chunks 1 -q -o $work/e.kvc"
"$kvbook" capture --model "$tmp/other.gguf" --text "$tmp/train.txt" --ctx 128 $part
refuse "a part of another model" 6 'the models differ' "$kvbook" train "$work/a.kvc" "$work/e.kvc" $train
"$kvbook" capture --model "$tmp/tiny.gguf" --text "$tmp/more.txt" --ctx 128 $part
refuse "a part of another text" 6 'the texts differ' "$kvbook" train "$work/a.kvc" "$work/e.kvc" $train
"$kvbook" capture $input --seed 2 $part
refuse "a part with another seed" 6 'the seeds differ' "$kvbook" train "$work/a.kvc" "$work/e.kvc" $train
"$kvbook" capture --model "$tmp/tiny.gguf" --text "$tmp/train.txt" --ctx 64 $part
refuse "a part with another ctx" 6 'different lengths' "$kvbook" train "$work/a.kvc" "$work/e.kvc" $train
rm -f "$work"/*

# --shard, sampled, with the whole's sensitivities in the first part even where it has fewer chunks than they take.
"$kvbook" capture $input --chunks 24 --max-rows 1500 -q -o "$work/whole.kvc"
expect "capture without --shard" 0 wrote "$kvbook" train "$work/whole.kvc" --recipe best --bits 2 -o "$work/one.kvb"
for n in 2 5; do
    for i in $(seq $n); do
        "$kvbook" capture $input --chunks 24 --max-rows 1500 --shard $i/$n -q -o "$work/s$i-$n.kvc" || fail "shard $i/$n" "failed"
    done
    expect "$n shards" 0 wrote "$kvbook" train "$work"/s?-$n.kvc --recipe best --bits 2 -o "$work/shards.kvb"
    same "$n shards: the same bytes" "$work/one.kvb" "$work/shards.kvb"
    expect "$n shards merged" 0 "of $n parts" "$kvbook" merge $(ls -r "$work"/s?-$n.kvc) -o "$work/merged.kvc"
    same "$n shards merged: the capture of the whole" "$work/whole.kvc" "$work/merged.kvc"
done
for i in 1 2; do "$kvbook" capture $input --chunks 20 --fisher --queries --shard $i/2 -q -o "$work/f$i.kvc"; done
"$kvbook" capture $input --chunks 20 --fisher --queries -q -o "$work/f.kvc"
expect "merge of captures with gradients and queries" 0 'of 2 parts' "$kvbook" merge "$work/f1.kvc" "$work/f2.kvc" -o "$work/fm.kvc"
same "the capture of the whole, gradients and queries" "$work/f.kvc" "$work/fm.kvc"
expect "a merged capture verifies" 0 ' 0 failed' "$kvbook" verify "$work/fm.kvc"
refuse "merge of captures with one missing" 6 'are in neither' "$kvbook" merge "$work/s1-5.kvc" "$work/s3-5.kvc" -o "$work/x.kvc"
refuse "merge of a capture with itself" 6 'both hold chunk 0;' "$kvbook" merge "$work/s1-2.kvc" "$work/s1-2.kvc" -o "$work/x.kvc"
refuse "merge of a capture and a book" 2 'captures \(.kvc\) and other files together' "$kvbook" merge "$work/s1-2.kvc" "$work/one.kvb" -o "$work/x.kvc"
"$kvbook" capture $input --chunks 20 --shard 2/2 -q -o "$work/g2.kvc"
"$kvbook" capture $input --chunks 20 --queries -q -o "$work/g.kvc"
expect "merge of captures of which one has gradients" 0 'of 2 parts' "$kvbook" merge "$work/f1.kvc" "$work/g2.kvc" -o "$work/gm.kvc"
same "leaves gradients out" "$work/g.kvc" "$work/gm.kvc"
job="$input --chunks 24 --recipe best --bits 2"
job="$job --max-memory $(less_memory 1.5 $job)"
"$kvbook" calibrate $job -q -o "$work/calibrated.kvb"
for i in 1 2 3; do expect "calibrate --shard $i/3" 0 "part $i of 3" "$kvbook" calibrate $job --shard $i/3 -o "$work/c$i.kvc"; done
"$kvbook" train "$work"/c?.kvc --recipe best --bits 2 -q -o "$work/c.kvb"
same "calibrate: the same bytes from shards" "$work/calibrated.kvb" "$work/c.kvb"
rm -f "$work"/*
for bad in 0/3 4/3 3 /3 1/ a/b 1/3x; do
    refuse "--shard $bad" 2 'expected I/N with I from 1 to N' "$kvbook" capture $input --shard $bad -o "$work/x.kvc"
done
refuse "more shards than chunks" 2 'expected at least one each' "$kvbook" capture $input --chunks 3 --shard 4/4 -o "$work/x.kvc"
refuse "--shard with --tune" 2 'a part is captured only' "$kvbook" calibrate $job --shard 1/3 --tune 1 -o "$work/x.kvc"
refuse "no captures" 2 'found no captures|expected at least one' "$kvbook" train --recipe best --bits 2 -o "$work/x.kvb"

# The Slurm scripts of the documentation are shell that a shell understands.
if command -v bash >/dev/null 2>&1; then
    awk -v dir="$tmp" '/^```bash$/ { n++; on = 1; next } /^```$/ { on = 0 } on { print > (dir "/doc-" n ".sh") }' docs/scale.md
    for script in "$tmp"/doc-*.sh; do
        if bash -n "$script" 2>"$err"; then ok "docs/scale.md: $(basename "$script")"; else fail "docs/scale.md: $(basename "$script")" "bash -n refuses it"; fi
    done
else
    skip "docs/scale.md: scripts" "no bash here"
fi
done_testing
