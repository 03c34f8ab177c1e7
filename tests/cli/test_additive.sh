#!/bin/sh
# Additive codebooks from the command line: trained, shown, checked, scored, and refused where the shape makes no sense.
. "$(dirname "$0")/lib.sh"

tiny_model "$tmp/tiny.gguf" 1
words "$tmp/train.txt" 120 1
words "$tmp/test.txt" 40 2
model="--model $tmp/tiny.gguf"
input="$model --text $tmp/train.txt --ctx 128 --chunks 8"
recipe="--recipe antkv --k add:4x4+4 --v add:8x4+4+4+4"

expect "calibrate --dry-run" 0 '^bits +1 \(keys add:4x4\+4, values add:8x4\+4\+4\+4\)' \
    "$kvbook" calibrate $input $recipe --dry-run -o "$work/dry.kvb"
expect "calibrate" 0 'wrote .*1 bits, recipe antkv' "$kvbook" calibrate $input $recipe -o "$work/a.kvb"
for n in 1 3; do
    expect "calibrate --threads $n" 0 . "$kvbook" calibrate $input $recipe --threads $n -o "$work/t$n.kvb"
    same "the same bytes with $n threads" "$work/a.kvb" "$work/t$n.kvb"
done
expect "capture" 0 'wrote' "$kvbook" capture $input -o "$work/c.kvc"
expect "train" 0 'wrote .*1 bits' "$kvbook" train "$work/c.kvc" $recipe -o "$work/c.kvb"
same "capture and train equal calibrate" "$work/a.kvb" "$work/c.kvb"
printf '%s' '{"schema": 1, "name": "sums", "keys": {"shape": "add:4x4+4"}, "values": {"shape": "4x16"}}' >"$tmp/sums.json"
expect "a recipe's own shapes" 0 'wrote .*1 bits, recipe sums' \
    "$kvbook" train "$work/c.kvc" --recipe "$tmp/sums.json" -o "$work/mixed.kvb"
expect "a plain book to compare with" 0 . "$kvbook" train "$work/c.kvc" --recipe antkv --k 4x16 --v 8x256 -o "$work/plain.kvb"

expect "info" 0 '^codebooks +8: keys add:4x4\+4, values add:8x4\+4\+4\+4' "$kvbook" info "$work/a.kvb"
expect "info of a mixed book" 0 '^codebooks +8: keys add:4x4\+4, values 4x16' "$kvbook" info "$work/mixed.kvb"
"$kvbook" info --json "$work/a.kvb" >"$tmp/info.json"
"$kvbook" info --json "$work/plain.kvb" >"$tmp/plain.json"
json "info --json" "$tmp/info.json" 'd["bits_nominal"] == 1 and d["keys"]["shape"] == "add:4x4+4"
    and d["keys"]["centroids"] == 4 and d["keys"]["stages"] == 2 and d["values"]["stages"] == 4
    and d["meta"]["training"]["keys"]["shape"] == "add:4x4+4" and d["keys"]["usage"] == 1
    and 2 < d["keys"]["entropy"] <= 4 and 0 < d["keys"]["error"] < 1'
python3 -c 'import json, sys; a, b = (json.load(open(p)) for p in sys.argv[1:])
sys.exit(not (a["bytes"] < b["bytes"] and a["bits_effective_128k"] < b["bits_effective_128k"] and b["keys"]["stages"] == 1))' \
    "$tmp/info.json" "$tmp/plain.json" && ok "smaller tables, fewer effective bits" || fail "smaller tables, fewer effective bits" "they are not"
expect "verify" 0 ' 0 failed' "$kvbook" verify "$work/a.kvb" $model
expect "spec/kvb_decode.py reads it" 0 '"M": 4' python3 spec/kvb_decode.py --tables "$work/a.kvb"
python3 tests/cli/rewrite_centroids.py "$work/a.kvb" "$work/equal.kvb" 1
refuse "a stage of equal rows" 3 'group 0, stage 0: all 4 centroids are equal' "$kvbook" info "$work/equal.kvb"
expect "stages of 8" 0 . "$kvbook" train "$work/c.kvc" --recipe antkv --bits 1 --k add:4x8+8 --v 4x16 -o "$work/eight.kvb"
expect "verify of stages of 8" 0 ' 0 failed' "$kvbook" verify "$work/eight.kvb"
python3 tests/cli/rewrite_centroids.py "$work/eight.kvb" "$work/equal.kvb" 3 1
expect "verify looks at every stage" 1 '^FAILED distinct: layer 0, KV head 0, keys, group 0: found 3,' "$kvbook" verify "$work/equal.kvb"
expect "report" 0 . "$kvbook" report "$work/a.kvb" -o "$work/a.html"
expect "report names the shape" 0 'add:8x4\+4\+4\+4: 8 channels, 256 centroids, sums of one of each stage' cat "$work/a.html"

"$kvbook" eval $model --text "$tmp/test.txt" --ctx 128 --chunks 2 --book "$work/a.kvb" --json >"$tmp/e.json" 2>"$err"
json "eval" "$tmp/e.json" 'd["bits_nominal"] == 1 and d["ppl"] > 1 and d["kl"] > 0'
expect "generate" 0 . "$kvbook" generate $model --book "$work/a.kvb" --prompt "abc def" -n 8

wrong() { # wrong SHAPE PATTERN
    refuse "shape $1" 2 "shape of the keys: found .*: .*$2" \
        "$kvbook" train "$work/c.kvc" --recipe antkv --bits 1 --k "$1" -o "$work/no.kvb"
}
wrong add:8x4 '2 to 8 stages'
wrong 8x4+4 'begins with add:'
wrong add:8x4+8 'same number of centroids'
wrong add:8x6+6 'power of two'
wrong add:8x512+512 'over 65536 codes'
wrong add:8x4+ 'after each'
wrong add:8x4+4+4+4+4+4+4+4+4 'at most 8 stages'
wrong add:65x4+4 '1 to 64'
for shape in add:x4+4 add: add:8 add:8x; do wrong $shape 'expected d x K'; done
refuse "d does not divide D" 2 'groups of 3 channels do not divide' \
    "$kvbook" train "$work/c.kvc" --recipe antkv --bits 1 --k add:3x4+4 -o "$work/no.kvb"
done_testing
