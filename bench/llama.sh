#!/bin/sh
# kvbook inside llama.cpp: captures of both engines side by side, books trained from llama.cpp's capture, and perplexity of llama.cpp with
# these books and with its own cache types, beside `kvbook eval` of the same books.
#
#   LLAMA_SRC=DIR LLAMA_LIB=DIR bench/llama.sh MODEL.gguf CALIBRATION TEST [CAPTURE_CHUNKS [SCORE_CHUNKS]] > bench/results/llama-DATE.txt
#
# LLAMA_SRC: the sources of llama.cpp; LLAMA_LIB: where its libllama.so is. PYTHON needs numpy.
# KVC: a capture by llama_capture, to go on from.
set -eu
cd "$(dirname "$0")/.."
model=$1 calibration=$2 heldout=$3 capture=${4:-32} score=${5:-4}
build=${BUILD:-build}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
make -s -f docs/examples/llama.cpp/Makefile OUT="$tmp" KVBOOK_LIB="$build" >&2
echo "# bench/llama.sh $(basename "$model") $(basename "$calibration") $(basename "$heldout") $capture $score: $(nproc) cores, $(grep -m 1 'model name' /proc/cpuinfo | sed 's/.*: //'), $(date +%F)"
if [ -n "${KVC:-}" ]; then
    cp "$KVC" "$tmp/llama.kvc"
    echo "# a capture of $capture chunks that an earlier run made"
else
    start=$(date +%s)
    "$tmp/llama_capture" "$model" "$calibration" 512 "$capture" "$tmp/llama.kvc"
    echo "# llama_capture: $capture chunks of 512 tokens in $(($(date +%s) - start)) s"
    "$build/kvbook" capture --model "$model" --text "$calibration" --ctx 512 --chunks "$capture" --sensitivity 0 -q -o "$tmp/own.kvc"
    KVBOOK_LIBRARY_DIR=$PWD/$build PYTHONPATH=$PWD/python "${PYTHON:-python3}" docs/examples/llama.cpp/compare_captures.py "$tmp/llama.kvc" "$tmp/own.kvc"
fi
for type in f16 q8_0 q4_0; do "$tmp/llama_perplexity" "$model" "$heldout" 2048 "$score" "$type"; done
for bits in 1 2; do
    "$build/kvbook" train "$tmp/llama.kvc" --recipe antkv --bits $bits -q -o "$tmp/antkv-$bits.kvb"
    for bare in "" bare; do
        start=$(date +%s)
        (cd "$tmp" && ./llama_perplexity "$model" "$heldout" 2048 "$score" antkv-$bits.kvb $bare)
        echo "# $(($(date +%s) - start)) s"
        "$build/kvbook" eval --model "$model" --allow-model-mismatch --allow-tokenizer-mismatch --text "$heldout" --ctx 2048 --chunks "$score" \
            --book "$tmp/antkv-$bits.kvb" ${bare:+--anchors 0 --window 0 --sinks 0} --json -q |
            sed 's/.*"ppl":\([0-9.]*\),"ppl_exact":\([0-9.]*\).*/kvbook eval of the same: \1, exact \2/'
    done
done
