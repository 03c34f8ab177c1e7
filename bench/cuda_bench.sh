#!/bin/sh
# `make bench-cuda`: decode attention of the GPU cache beside FP16 attention of PyTorch on the same machine, and the table of both.
set -eu
cd "$(dirname "$0")/.."
program=${1:-${BUILD:-build}/bench/cuda_decode_bench}
out=${OUT:-$(mktemp -d)}
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
date -u +%F
python3 bench/cuda_fp16.py | tee "$out/cuda-decode.jsonl"
"$program" | tee -a "$out/cuda-decode.jsonl"
python3 bench/cuda_table.py "$out/cuda-decode.jsonl"
