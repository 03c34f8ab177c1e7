#!/bin/sh
# Calibration on a GPU against the CPU's, end to end. Needs a device and a build with CUDA=1.
# `make check-cuda-calib`; exit 7 where there is no device. QUICK=1 leaves compute-sanitizer out.
#   BUILD=build/cuda DATA=../shared/data tests/cuda/calib.sh [MODEL TEXT [CHUNKS]]
set -eu
BUILD=${BUILD:-build/cuda}
DATA=${DATA:-../shared/data}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export SOURCE_DATE_EPOCH=1000000000 # books of one job are compared byte by byte
status=0
kvbook() { "$BUILD/kvbook" "$@"; }
value_of() { sed -n "s/.*relative error: keys \([0-9.]*\), values \([0-9.]*\).*/\1 \2/p" "$1"; }

# captures NAME FLAGS...: both captures of one text, and what is apart between them
captures() {
    name=$1; shift
    echo "== $name: captures"
    for device in cpu cuda; do
        kvbook capture "$@" --sensitivity 0 --device $device -o "$work/$device.kvc" -q || return 1
    done
    "$BUILD/tests/cuda/gpu_capture_compare" "$work/cpu.kvc" "$work/cuda.kvc"
}

# books NAME RECIPE BITS FLAGS...: books from both; errors within 0.1 %
books() {
    name=$1 recipe=$2 bits=$3; shift 3
    echo "== $name: books, $recipe at $bits"
    for device in cpu cuda; do
        start=$(date +%s.%N)
        kvbook calibrate "$@" --recipe "$recipe" --bits "$bits" --no-allocate --device $device -o "$work/$device.kvb" --no-progress \
            2>"$work/$device.log" || { cat "$work/$device.log"; return 1; }
        echo "$device: $(value_of "$work/$device.log") in $(date +%s.%N | awk -v s="$start" '{printf "%.1f", $1 - s}') s"
    done
    echo "$(value_of "$work/cpu.log") $(value_of "$work/cuda.log")" |
        awk '{ for (i = 1; i < 3; i++) {
                   off = $(i + 2) / $i - 1; most = 0.001 + 0.0001 / $i
                   good = (off < most && off > -most); bad += !good
                   printf("%s %s: error off by %.3f %%\n", good ? "ok  " : "FAIL", i == 1 ? "keys" : "values", 100 * off)
               }
               exit(bad > 0) }'
}

# same WHAT FILE FILE
same() {
    if cmp -s "$2" "$3"; then
        echo "ok   $1"
    else
        echo "FAIL $1: $(cmp "$2" "$3" 2>&1 | tail -n 1)"
        return 1
    fi
}

# parts NAME N FLAGS...: captures of N parts of a text train the book that the capture of the whole trains
parts() {
    name=$1 of=$2; shift 2
    kvbook capture "$@" --sensitivity 0 --device cuda -o "$work/whole.kvc" -q || return 1
    i=1
    while [ "$i" -le "$of" ]; do
        kvbook capture "$@" --sensitivity 0 --device cuda --shard "$i/$of" -o "$work/part-$i.kvc" -q || return 1
        i=$((i + 1))
    done
    for device in cpu cuda; do
        kvbook train "$work/whole.kvc" --recipe antkv --bits 1 --device $device -o "$work/whole.kvb" -q || return 1
        kvbook train "$work"/part-*.kvc --recipe antkv --bits 1 --device $device -o "$work/parts.kvb" -q || return 1
        same "$name: the book from $of parts, trained on $device" "$work/whole.kvb" "$work/parts.kvb" || return 1
    done
    rm "$work"/part-*.kvc
}

# devices NAME FLAGS...: captures and books do not depend on which GPUs, nor on how many
devices() {
    name=$1; shift
    kvbook capture "$@" --sensitivity 0 --device cuda:0 -o "$work/one.kvc" -q || return 1
    kvbook calibrate "$@" --recipe antkv --bits 1 --device cuda:0 -o "$work/one.kvb" -q || return 1
    for device in cuda cuda:all $([ "$gpus" -lt 2 ] || echo cuda:1 cuda:0,1); do
        kvbook capture "$@" --sensitivity 0 --device $device -o "$work/other.kvc" -q || return 1
        same "$name: the capture of cuda:0 on $device" "$work/one.kvc" "$work/other.kvc" || return 1
        kvbook calibrate "$@" --recipe antkv --bits 1 --device $device -o "$work/other.kvb" -q || return 1
        same "$name: the book of cuda:0 on $device" "$work/one.kvb" "$work/other.kvb" || return 1
    done
}

gpus=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | wc -l)
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null || true
"$BUILD/tests/cuda/gpu_kmeans_test" >"$work/kmeans.log" || status=1
cat "$work/kmeans.log"
grep -q '^SKIP' "$work/kmeans.log" && exit 7

# The report has four digits: a unit of the last is allowed on top of 0.1 %.
model=$work/tiny.gguf
"$BUILD/tests/make_tiny_gguf" "$model" 7
captures "tiny model" --model "$model" --text "$DATA/wikitext2/wiki.valid.raw" --ctx 200 --chunks 9 || status=1
captures "tiny model, sampled" --model "$model" --text "$DATA/wikitext2/wiki.valid.raw" --ctx 129 --chunks 5 --max-rows 300 || status=1
for arch in qwen2 qwen3 phi3; do
    "$BUILD/tests/make_tiny_gguf" "$work/$arch.gguf" 7 0 $arch
    captures "tiny $arch" --model "$work/$arch.gguf" --text "$DATA/wikitext2/wiki.valid.raw" --ctx 200 --chunks 9 || status=1
done
"$BUILD/tests/make_tiny_gguf" "$work/gemma3.gguf" 7 0 gemma3
kvbook capture --model "$work/gemma3.gguf" --text "$DATA/wikitext2/wiki.valid.raw" --ctx 200 --chunks 9 --device cuda -o "$work/n.kvc" -q \
    2>"$work/log" && { echo "FAIL tiny gemma3 is not refused"; status=1; } || cat "$work/log"
stories="--model $DATA/stories260K/stories260K.bin --tokenizer $DATA/stories260K/tok512.bin --text $DATA/wikitext2/wiki.valid.raw"
captures stories260K $stories --ctx 512 --chunks 8 || status=1
books stories260K antkv 1 $stories --ctx 512 --chunks 32 || status=1
books stories260K best-fast 1 $stories --ctx 512 --chunks 32 || status=1
echo "== bytes that must not depend on parts and devices, $gpus GPUs"
devices "tiny model" --model "$model" --text "$DATA/wikitext2/wiki.valid.raw" --ctx 200 --chunks 9 || status=1
devices stories260K $stories --ctx 512 --chunks 13 || status=1
parts stories260K 3 $stories --ctx 512 --chunks 13 || status=1
kvbook capture --model "$model" --text "$DATA/wikitext2/wiki.valid.raw" --ctx 64 --chunks 4 --device "cuda:$gpus" -o "$work/n.kvc" -q \
    2>"$work/log" && { echo "FAIL a GPU that is not there"; status=1; } || [ $? = 7 ] || { echo "FAIL a GPU that is not there: exit $?"; status=1; }
if [ $# -ge 2 ]; then
    captures "$(basename "$1")" --model "$1" --text "$2" --ctx 2048 --chunks 2 || status=1
    books "$(basename "$1")" antkv 1 --model "$1" --text "$2" --chunks "${3:-8}" || status=1
    devices "$(basename "$1")" --model "$1" --text "$2" --ctx 2048 --chunks 5 || status=1
fi
for tool in memcheck racecheck; do
    [ "${QUICK:-0}" = 1 ] && break
    if ! command -v compute-sanitizer >/dev/null 2>&1; then
        echo "SKIP compute-sanitizer $tool: it is not installed"
        continue
    fi
    compute-sanitizer --tool $tool --error-exitcode 9 "$BUILD/tests/cuda/gpu_kmeans_test" few >"$work/log" 2>&1 &&
        compute-sanitizer --tool $tool --error-exitcode 9 "$BUILD/kvbook" capture --model "$model" --device cuda -q --sensitivity 0 \
            --text "$DATA/wikitext2/wiki.valid.raw" --ctx 100 --chunks 3 -o "$work/s.kvc" >>"$work/log" 2>&1 &&
        echo "ok   compute-sanitizer $tool" || { echo "FAIL compute-sanitizer $tool"; tail -n 40 "$work/log"; status=1; }
done
exit $status
