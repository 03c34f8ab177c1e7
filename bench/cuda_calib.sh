#!/bin/sh
# `make bench-cuda-calib`: tests of calibration on a GPU, then how long a model of Llama-3-8B's shape takes, on one GPU and on all of
# this machine, with one and with two layers at a time on each. Checksums of lines with the same recipe, chunks and layers must agree.
#   BUILD=build/cuda [LAYERS=32] [MODEL=model.gguf TEXT=text.txt] bench/cuda_calib.sh
set -u
cd "$(dirname "$0")/.."
BUILD=${BUILD:-build/cuda}
LAYERS=${LAYERS:-32}
bench=$BUILD/bench/cuda_calib_bench
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || exit 7
echo "$(nproc) CPU cores, $(date -u +%F)"
status=0
QUICK=${QUICK:-1} BUILD=$BUILD tests/cuda/calib.sh ${MODEL:+"$MODEL" "$TEXT"} || status=1
run() {
    echo "== cuda_calib_bench $*"
    "$bench" "$@" || status=1
}
run antkv 1 64 "$LAYERS" cuda:0
run antkv 1 64 8 cuda:0 1
run antkv 1 64 8 cuda:0 2
run antkv 0.375 64 8 cuda:0
if [ "$(nvidia-smi --query-gpu=name --format=csv,noheader | wc -l)" -gt 1 ]; then
    run antkv 1 64 "$LAYERS" cuda:all
    run antkv 1 64 8 cuda:all
    run antkv 0.375 64 8 cuda:all
fi
exit $status
