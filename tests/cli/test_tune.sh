#!/bin/sh
# Tuning on the command line: of a book, and inside calibrate and eval.
. "$(dirname "$0")/lib.sh"

tiny_model "$tmp/tiny.gguf" 1
words "$tmp/train.txt" 120 1
words "$tmp/test.txt" 40 2
model="--model $tmp/tiny.gguf"
input="$model --text $tmp/train.txt --ctx 128 --chunks 8"
recipe="--recipe antkv --k 4x16 --v 4x16"
# One chunk is held out: steps of this size take it along whatever the order of a processor's sums, larger ones by luck.
rate="--tune-rate 0.01"

"$kvbook" calibrate $input $recipe -q -o "$work/a.kvb" 2>"$err"
expect "calibrate --tune 0" 0 'wrote' "$kvbook" calibrate $input $recipe --tune 0 -o "$work/a0.kvb"
same "--tune 0 is no tuning" "$work/a.kvb" "$work/a0.kvb"
expect "calibrate --tune" 0 'tuned in 8 steps, .*: KL 0\.[0-9]+ in the first epoch' "$kvbook" calibrate $input $recipe --tune 2 $rate -o "$work/t.kvb"
if cmp -s "$work/a.kvb" "$work/t.kvb"; then fail "tuning changes the book" "it does not"; else ok "tuning changes the book"; fi
expect "tune" 0 'wrote .*b\.kvb' "$kvbook" tune "$work/a.kvb" $input --tune 2 $rate -o "$work/b.kvb"
same "train, then tune equals calibrate --tune" "$work/t.kvb" "$work/b.kvb"
for n in 1 3; do
    "$kvbook" tune "$work/a.kvb" $input --tune 2 $rate --threads $n -q -o "$work/b$n.kvb" 2>"$err"
    same "the same bytes with $n threads" "$work/b.kvb" "$work/b$n.kvb"
done
expect "tune -v names parts" 0 '^processor seconds of a chunk: teacher ' "$kvbook" tune "$work/a.kvb" $input -v -o "$work/v.kvb"
layers="--tune-objective attention"
expect "calibrate --tune of layers" 0 'tuned [12] of 2 layers in 8 steps' "$kvbook" calibrate $input $recipe --tune 2 $layers -o "$work/l.kvb"
expect "tune -v names layers" 0 '^layer 1: error of the attention output 0\.[0-9]+ -> 0\.[0-9]+, held out 0\.' \
    "$kvbook" tune "$work/a.kvb" $input $layers --tune 1 -v -o "$work/v.kvb"
"$kvbook" tune "$work/a.kvb" $input $layers --tune 2 -q -o "$work/m.kvb" 2>"$err"
same "train, then tune layers equals calibrate" "$work/l.kvb" "$work/m.kvb"
expect "tune --tune-exact none" 0 . "$kvbook" tune "$work/a.kvb" $input $layers --tune 1 --tune-exact none -o "$work/n.kvb"
expect "a worse book is not taken" 0 'the book stays as it was' "$kvbook" tune "$work/a.kvb" $input --tune-rate 50 -o "$work/w.kvb"
for name in t l n w; do "$kvbook" info --json "$work/$name.kvb" >"$tmp/$name.json"; done
json "META of a tuned book" "$tmp/t.json" 'd["meta"]["tuning"]["epochs"] == 2 and d["meta"]["tuning"]["steps"] == 8
    and d["meta"]["tuning"]["window"] == 32 and d["meta"]["tuning"]["anchors"] and d["meta"]["tuning"]["rate"] == 0.01
    and d["meta"]["tuning"]["objective"] == "KL(exact model || model with the coded cache)"
    and d["meta"]["tuning"]["heldout_after"] < d["meta"]["tuning"]["heldout_before"]
    and d["meta"]["tuning"]["accepted"] and d["meta"]["tuning"]["best_epoch"] in (1, 2)
    and d["meta"]["tuning"]["text"]["chunks"] == 8 and d["meta"]["recipe"]["name"] == "antkv"'
json "META of one whose layers were tuned" "$tmp/l.json" 'len(d["meta"]["tuning"]["layers"]) == 2
    and d["meta"]["tuning"]["objective"] == "||(O\x27 - O) W_O||^2 / ||O W_O||^2" and d["meta"]["tuning"]["rate"] == 0.02
    and d["meta"]["tuning"]["train_after"] < d["meta"]["tuning"]["train_before"]'
json "META of one tuned with nothing exact" "$tmp/n.json" 'd["meta"]["tuning"]["window"] == 0 and not d["meta"]["tuning"]["anchors"]
    and d["meta"]["tuning"]["heldout_before"] > 0'
json "META of one that stays as it was" "$tmp/w.json" 'not d["meta"]["tuning"]["accepted"] and d["meta"]["tuning"]["best_epoch"] == 0'
expect "verify of a tuned book" 0 ' 0 failed' "$kvbook" verify "$work/t.kvb" $model

# Fine codes: the tuned book keeps them, and what is read exactly goes through them.
"$kvbook" recipes show antkv | sed 's/"mean": false/"mean": false, "fine": "2x64"/; s/"sinks": 0/"sinks": 2, "exact": "fine"/' >"$tmp/fine.json"
expect "calibrate with fine codes" 0 wrote "$kvbook" calibrate $input --recipe "$tmp/fine.json" --k 4x16 --v 4x16 -o "$work/f.kvb"
expect "tune a book with fine codes" 0 wrote "$kvbook" tune "$work/f.kvb" $input -o "$work/g.kvb"
expect "the tuned book keeps its fine codes" 0 'fine +[0-9]+: keys 2x64, values 2x64' "$kvbook" info "$work/g.kvb"
"$kvbook" info --json "$work/g.kvb" >"$tmp/g.json"
json "META says what was read exactly" "$tmp/g.json" 'd["meta"]["tuning"]["exact"] == "fine"'

evaluate="$model --text $tmp/test.txt --ctx 128 --chunks 3 --json"
"$kvbook" eval $evaluate --book "$work/t.kvb" >"$tmp/e.json" 2>"$err"
"$kvbook" eval $evaluate $recipe --calib-text "$tmp/train.txt" --calib-chunks 8 --tune 2 $rate >"$tmp/r.json" 2>"$err"
json "eval --recipe --tune is that book" "$tmp/r.json" "d['ppl'] == $(sed 's/.*"ppl":\([0-9.e+]*\),.*/\1/' "$tmp/e.json")"

refuse "tune without a book" 2 'found 0 books' "$kvbook" tune $input -o "$work/no.kvb"
refuse "tune 0 epochs" 2 '--tune: found 0' "$kvbook" tune "$work/a.kvb" $input --tune 0 -o "$work/no.kvb"
refuse "tune on one chunk" 2 'one is held out' "$kvbook" tune "$work/a.kvb" $model --text "$tmp/train.txt" --ctx 128 --chunks 1 -o "$work/no.kvb"
refuse "tune onto the text" 2 . "$kvbook" tune "$work/a.kvb" $input -o "$tmp/train.txt"
refuse "tune onto the book" 2 . "$kvbook" tune "$work/a.kvb" $input -o "$work/a.kvb"
refuse "a book of another model" 6 . "$kvbook" tune tests/golden/minimal.kvb $input -o "$work/no.kvb"
refuse "fine codes asked for, none in the book" 3 'policy-exact-fine-without\.kvb, POLC: .*no FINE sections' "$kvbook" tune \
    tests/golden-errors/policy-exact-fine-without.kvb $input -o "$work/no.kvb"
for flag in "--tune 1" --tune=2 "--tune-rate 0.1"; do
    refuse "train $flag" 2 "^kvbook: error: ${flag%%[ =]*}: .*kvbook tune BOOK\.kvb.*kvbook calibrate --tune" \
        "$kvbook" train "$tmp/none.kvc" $recipe $flag -o "$work/no.kvb"
done
refuse "no book" 4 . "$kvbook" tune "$work/none.kvb" $input -o "$work/no.kvb"
refuse "an objective of another name" 2 'tune-objective' "$kvbook" tune "$work/a.kvb" $input --tune-objective loss -o "$work/no.kvb"
refuse "eval --tune-objective without a recipe" 2 '--tune-objective: means nothing' "$kvbook" eval $evaluate --book "$work/a.kvb" --tune-objective kl
refuse "eval --tune without a recipe" 2 '--tune: means nothing without --recipe' "$kvbook" eval $evaluate --book "$work/a.kvb" --tune 2
done_testing
