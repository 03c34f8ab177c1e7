#!/bin/sh
# A model that no recipe was made on: llama2.c's stories260K (heads of 8 channels), on stories that it tells itself.
#
#   bench/second_model.sh [BITS...]
#
# Calibrates antkv and best on 64 chunks of 512 tokens at each rate (default 2 and 1) and scores them on 32 others, at contexts of
# that length, with the policies of the recipes and with the same for both. Needs ../shared/data/stories260K.
set -eu
cd "$(dirname "$0")/.."
data=${DATA:-../shared/data}/stories260K
model="--model $data/stories260K.bin --tokenizer $data/tok512.bin"
work=build/second_model
export OMP_WAIT_POLICY=passive
make -s all >/dev/null
mkdir -p $work
tell() { # tell FILE FIRST LAST: a story for each seed
    : >"$1"
    for seed in $(seq "$2" "$3"); do
        build/kvbook generate -q $model --prompt "Once upon a time" -n 500 --temperature 0.9 --seed "$seed" --ignore-eos >>"$1"
    done
}
[ -s $work/train.txt ] || tell $work/train.txt 1 75
[ -s $work/test.txt ] || tell $work/test.txt 1001 1040
for bits in ${@:-2 1}; do
    for recipe in antkv best; do
        build/kvbook calibrate -q $model --text $work/train.txt --ctx 512 --chunks 64 --recipe $recipe --bits "$bits" -o $work/$recipe-"$bits".kvb
    done
    for policy in "" "--anchors 1% --window 32 --sinks 0 --exact half" "--anchors 0 --window 0 --sinks 0"; do
        echo "== $bits bits, ${policy:-policies of the recipes}"
        build/kvbook eval -q $model --text $work/test.txt --ctx 512 --chunks 32 --book $work/antkv-"$bits".kvb $work/best-"$bits".kvb \
            --anchor-protocol chunk $policy
    done
done
