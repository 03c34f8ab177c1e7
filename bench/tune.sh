#!/bin/sh
# What tuning buys: a book tuned on its model's text with each stream, scored beside what it was.
#
#   bench/tune.sh MODEL BOOK CALIBRATION_TEXT TEST_TEXT [CHUNKS EPOCHS TEST_CHUNKS]
#
# Prints errors of every layer, seconds a chunk, and a table of perplexities: nothing kept exact, and the book's policy with
# anchors of the whole chunk. FOLDER (default build/tune) keeps the tuned books.
set -eu
cd "$(dirname "$0")/.."
model=$1 book=$2 text=$3 test=$4 chunks=${5:-8} epochs=${6:-3} test_chunks=${7:-4}
folder=${FOLDER:-build/tune}
export OMP_WAIT_POLICY=passive
mkdir -p "$folder"
make -s all >/dev/null
nproc
for stream in exact coded; do
    echo "== $stream stream, $chunks chunks, $epochs epochs, batch 1"
    build/kvbook tune "$book" --model "$model" --text "$text" --chunks "$chunks" --tune "$epochs" --tune-batch 1 \
        --tune-objective attention --tune-stream $stream -v -o "$folder/$stream.kvb" 2>&1
done
build/kvbook eval --model "$model" --text "$test" --chunks "$test_chunks" --book "$book" "$folder/exact.kvb" "$folder/coded.kvb" \
    --anchor-protocol chunk --also-bare
