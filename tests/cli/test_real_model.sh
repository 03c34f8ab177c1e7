#!/bin/sh
# The whole pipeline on a real model, SmolLM2-135M-Instruct (KVB_TEST_MODEL names the file), over the shared texts.
. "$(dirname "$0")/lib.sh"

model=${KVB_TEST_MODEL:-}
text=${KVB_TEST_DATA:-../shared/data}/wikitext2
if [ ! -f "$model" ]; then skip "real model" "KVB_TEST_MODEL names no file"; done_testing; fi
unset OMP_WAIT_POLICY
calibration=$text/wiki.valid.raw
heldout=$text/wiki.test.raw
# Without the shared texts this repository's own English serves for everything but the known perplexity.
if [ ! -d "$text" ]; then
    skip "exact perplexity of the first chunk" "$text is missing"
    cat README.md CONTRIBUTING.md spec/*.md docs/*.md >"$tmp/calibration.txt"
    cp LICENSE "$tmp/heldout.txt"
    calibration=$tmp/calibration.txt
    heldout=$tmp/heldout.txt
else
# 64 chunks of 2048 tokens give 20.900 (20.902 by an independent implementation in PyTorch); the first chunk gives 15.102.
"$kvbook" eval --model "$model" --text "$text/wiki.test.raw" --ctx 2048 --chunks 1 --json >"$tmp/exact.json" 2>"$err"
json "exact perplexity of the first chunk" "$tmp/exact.json" 'abs(d["ppl"] / 15.1024 - 1) < 0.001 and d["targets"] == 2047'
fi

expect "calibrate" 0 'wrote' "$kvbook" calibrate --model "$model" --text "$calibration" --ctx 512 --chunks 8 \
    --recipe antkv --k 4x16 --v 4x16 -o "$work/a.kvb"
expect "verify" 0 ' 0 failed' "$kvbook" verify "$work/a.kvb" --model "$model"
"$kvbook" eval --model "$model" --text "$heldout" --ctx 512 --chunks 2 --book "$work/a.kvb" --json \
    >"$tmp/kept.json" 2>"$err"
"$kvbook" eval --model "$model" --text "$heldout" --ctx 512 --chunks 2 --book "$work/a.kvb" --json \
    --anchors 0 --window 0 --sinks 0 >"$tmp/bare.json" 2>"$err"
json "1 bit with anchors and a window is usable" "$tmp/kept.json" '1 < d["ppl"] / d["ppl_exact"] < 2'
json "1 bit with nothing exact is worse, not broken" "$tmp/bare.json" '1.5 < d["ppl"] / d["ppl_exact"] < 8'

# Scalar quantisers: more bits are better, and keys need them more than values do, at equal bytes.
for split in 1x16:1x16 1x16:1x4 1x4:1x16; do
    "$kvbook" eval --model "$model" --text "$heldout" --ctx 512 --chunks 1 --calib-text "$calibration" --calib-chunks 1 --recipe kivi \
        --k "${split%:*}" --v "${split#*:}" --json >"$tmp/$split.json" 2>"$err"
done
json "keys of 4 bits and values of 2 are better than the other way round" "$tmp/1x16:1x4.json" \
    "d['kl'] * 2 < json.load(open('$tmp/1x4:1x16.json'))['kl'] and d['bits_nominal'] == 3"
json "4 bits are better than 3" "$tmp/1x16:1x16.json" "d['kl'] * 2 < json.load(open('$tmp/1x16:1x4.json'))['kl']"

# Fisher weights, and numbers with trained levels and outliers. A token of kivi waits for its group, 16 tokens on average: the others' windows
# are as much longer.
"$kvbook" capture --model "$model" --text "$calibration" --ctx 512 --chunks 8 --fisher --queries --sensitivity 0 -o "$work/f.kvc" -q 2>"$err"
"$kvbook" recipes show cq | sed 's/"fisher"/"none"/g; s/"cq"/"uniform"/' >"$tmp/uniform.json"
scored() { # scored NAME RECIPE KEYS VALUES FLAG...: a book from the capture, and its scores
    "$kvbook" train "$work/f.kvc" --recipe "$2" --k "$3" --v "$4" -q -o "$work/$1.kvb" 2>"$err"
    book=$1
    shift 4
    "$kvbook" eval --model "$model" --text "$heldout" --ctx 512 --chunks 2 --book "$work/$book.kvb" --json "$@" >"$tmp/$book.json" 2>"$err"
}
scored cq8 cq 8x256 8x256
scored cq4 cq 4x16 4x16
scored cq2 cq 2x4 2x4
scored uniform "$tmp/uniform.json" 8x256 8x256
json "cq: coupling more channels is better at 1 bit" "$tmp/cq8.json" "d['kl'] * 1.1 < json.load(open('$tmp/cq4.json'))['kl'] and
    json.load(open('$tmp/cq4.json'))['kl'] * 1.1 < json.load(open('$tmp/cq2.json'))['kl']"
json "cq: Fisher weights are better than none" "$tmp/cq8.json" "d['kl'] * 1.1 < json.load(open('$tmp/uniform.json'))['kl']"
scored uniform "$tmp/uniform.json" 4x256 4x256 --window 48
scored cq cq 4x256 4x256 --window 48
json "cq: also at 2 bits" "$tmp/cq.json" "d['kl'] * 1.02 < json.load(open('$tmp/uniform.json'))['kl']"
for shape in 2x16 1x4; do
    scored cq$shape cq $shape $shape --window 48
done
# Four channels are no better than two here: so few tokens do not fill 256 centroids a group.
for coupled in cq cq2x16; do
    json "cq: coupling channels is better at 2 bits ($coupled)" "$tmp/$coupled.json" "d['kl'] * 1.1 < json.load(open('$tmp/cq1x4.json'))['kl']"
done
scored kvquant kvquant 1x4 1x4 --window 48 --sinks 1
sed 's/"group": 32/"group": 64/g' "calib/recipes/kivi.json" >"$tmp/kivi64.json"
scored kivi64 "$tmp/kivi64.json" 1x4 1x4 --window 16 --sinks 1
json "kvquant is better than kivi of as many bits" "$tmp/kvquant.json" "d['kl'] * 1.05 < json.load(open('$tmp/kivi64.json'))['kl']"

# Tokens with small keys held out of their groups are worth more than as many more in the window.
scored ott ott 1x4 1x4 --window 16
scored wider kivi 1x4 1x4 --window 80
json "ott is better than kivi of no fewer bytes" "$tmp/ott.json" "(d['kl'] * 1.1 < json.load(open('$tmp/wider.json'))['kl'] and
    d['bits_effective'] <= json.load(open('$tmp/wider.json'))['bits_effective'] * 1.01)"

# Lists of channels, clips by search and the window each help; scales of a byte cost little.
scored skvq skvq 1x4 1x4
sed 's/"clip": "search"/"clip": 1/g' calib/recipes/skvq.json >"$tmp/variant.json"
scored unclipped "$tmp/variant.json" 1x4 1x4
sed 's/"groups": {[^}]*}/"group": 32/g' calib/recipes/skvq.json >"$tmp/variant.json"
scored neighbours "$tmp/variant.json" 1x4 1x4
sed 's/"fp8"/"half"/g' calib/recipes/skvq.json >"$tmp/variant.json"
scored halves "$tmp/variant.json" 1x4 1x4
"$kvbook" eval --model "$model" --text "$heldout" --ctx 512 --chunks 2 --book "$work/skvq.kvb" --json --window 0 >"$tmp/windowless.json" 2>"$err"
for without in unclipped neighbours windowless; do
    json "skvq is better than $without" "$tmp/skvq.json" "d['kl'] * 1.2 < json.load(open('$tmp/$without.json'))['kl']"
done
json "scales of a byte cost little, and are fewer bytes" "$tmp/skvq.json" "d['kl'] < json.load(open('$tmp/halves.json'))['kl'] * 1.15 and
    d['bits_effective'] < json.load(open('$tmp/halves.json'))['bits_effective']"

# The pivot of a prompt, its first token, kept as the model made it.
scored unaided kivi 1x4 1x4 --window 0 --sinks 0
scored pivot kivi 1x4 1x4 --window 0 --sinks 1
json "a pivot helps kivi" "$tmp/pivot.json" "d['kl'] * 1.1 < json.load(open('$tmp/unaided.json'))['kl']"

# A book made for this model is no use to another.
tiny_model "$tmp/tiny.gguf" 1
words "$tmp/words.txt" 60 1
refuse "a book of another model" 6 . "$kvbook" eval --model "$tmp/tiny.gguf" --text "$tmp/words.txt" --ctx 64 --book "$work/a.kvb"

expect "generate with a 1-bit cache" 0 . "$kvbook" generate --model "$model" --prompt "The capital of France is" -n 8 \
    --book "$work/a.kvb"
"$kvbook" generate --model "$model" --prompt "The capital of France is" -n 8 >"$tmp/exact.txt" 2>"$err"
if grep -q Paris "$tmp/exact.txt"; then ok "generate with an exact cache knows Paris"; else fail "generate" "$(cat "$tmp/exact.txt")"; fi
done_testing
