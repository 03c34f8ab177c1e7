#!/bin/sh
# Perplexities of the recipes antkv and cq under the protocol that docs and README quote:
#   bench/reproduce.sh MODEL.gguf [OUT]     (OUT: bench/results/reproduce-DATE.txt)
# Calibrates on the first 64 x 2048 tokens of WikiText-2 valid, scores the first 64 x 2048 of WikiText-2 test.
# Needs ../shared/data, 4 GB of disk under build/ and about an hour on 2 cores. CHUNKS=8 for a quick look.
set -eu
cd "$(dirname "$0")/.."
model=${1:?usage: bench/reproduce.sh MODEL.gguf [OUT]}
out=${2:-bench/results/reproduce-$(date +%F).txt}
data=${DATA:-../shared/data}
chunks=${CHUNKS:-64}
kvbook=${KVBOOK:-build/kvbook}
# Captures and books are kept from run to run, by what decides them: the binary, the model and the number of chunks.
work=${WORK:-build/reproduce/$(cat "$kvbook" "$model" | sha256sum | cut -c1-12)-$chunks}
mkdir -p "$work"

{
    echo "# bench/reproduce.sh, $(date -u +%FT%TZ), $(nproc) threads, $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)"
    echo "# $(git describe --always --dirty 2>/dev/null || echo unknown), $chunks chunks of 2048"
} | tee "$out"

say() { echo "$*" | tee -a "$out"; }

calibration=$work/wiki.valid.kvc
[ -f "$calibration" ] || {
    start=$(date +%s)
    "$kvbook" capture --model "$model" --text "$data/wikitext2/wiki.valid.raw" --ctx 2048 --chunks "$chunks" -o "$calibration"
    say "capture: $(($(date +%s) - start)) s"
}

train() { # train NAME RECIPE BITS
    [ -f "$work/$1.kvb" ] && return
    start=$(date +%s)
    "$kvbook" train "$calibration" --recipe "$2" --bits "$3" --seed 1 -o "$work/$1.kvb"
    say "train $1: $(($(date +%s) - start)) s"
}
# cq without its Fisher weights, as the prototype had it.
"$kvbook" recipes show cq | sed 's/"fisher"/"none"/g; s/"cq"/"cq-unweighted"/' >"$work/cq-unweighted.json"
train cq-1 "$work/cq-unweighted.json" 1
train antkv-1 antkv 1
train antkv-2 antkv 2
train antkv-4 antkv 4
train antkv-0.375 antkv 0.375

score() { # score TEXT CHUNKS FLAGS... : one JSON line per book
    text=$1; n=$2; shift 2
    "$kvbook" eval --model "$model" --text "$text" --ctx 2048 --chunks "$n" --json "$@" >"$work/score.jsonl"
    tee -a "$out" <"$work/score.jsonl"
}
say "## nothing kept exact: cq 1 bit, antkv 1 bit"
score "$data/wikitext2/wiki.test.raw" "$chunks" --book "$work/cq-1.kvb" --book "$work/antkv-1.kvb" --anchors 0 --window 0 --sinks 0
say "## 1 % anchors (whole chunk), window 32: antkv at 1, 2, 4, 0.375 bit"
score "$data/wikitext2/wiki.test.raw" "$chunks" --no-exact --anchors 1% --anchor-protocol chunk --window 32 --sinks 0 \
    --book "$work/antkv-1.kvb" --book "$work/antkv-2.kvb" --book "$work/antkv-4.kvb" --book "$work/antkv-0.375.kvb"
say "## exact cache, C4"
score "$data/c4/c4_validation_first400.jsonl" "$((chunks / 2))"
