#!/bin/sh
# eval and generate on a GPU against the CPU's. Needs a device and a build with CUDA=1; `make check-cuda-calib` runs it, exit 7 where there is
# no device. On the GPU the cache itself is scored, token by token, behind products in TF32; on the CPU what it would compute, at once.
#   BUILD=build/cuda DATA=../shared/data [CHUNKS=4] [RECIPES="antkv:1 best:2"] tests/cuda/eval.sh [MODEL TEXT]
set -eu
BUILD=${BUILD:-build/cuda}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ $# -ge 2 ]; then
    model=$1 text=$2 flags=
else # random weights, for which few points make a book
    model=$work/tiny.gguf text=${DATA:-../shared/data}/wikitext2/wiki.valid.raw flags="--k 4x16 --v 4x16"
    "$BUILD/tests/make_tiny_gguf" "$model" 7
    CTX=200 CHUNKS=8 RECIPES="antkv:1 fast:1"
fi
kvbook() { "$BUILD/kvbook" "$@"; }
status=0
bad() { echo "FAIL $*"; status=1; }

# near NAME CPU.json GPU.json MOST: perplexities of each line, in relation; KL beside it, absolute
near() {
    python3 - "$@" <<'E2' || status=1
import json, sys
name, cpu, gpu, most = sys.argv[1:]
good = True
for a, b in zip(open(cpu), open(gpu)):
    a, b = json.loads(a), json.loads(b)
    exact, coded = (b[k] / a[k] - 1 for k in ("ppl_exact", "ppl"))
    apart = b["kl"] - a["kl"]
    ok = abs(exact) < 1e-3 and abs(coded) < float(most) and abs(apart) < float(most) and a["targets"] == b["targets"]
    good = good and ok
    print("%s %s: perplexity %.4f and %.4f, exact %.4f and %.4f, KL %.5f and %.5f, top-1 %.4f and %.4f; %.2f and %.2f s" % (
        "ok  " if ok else "FAIL", name, a["ppl"], b["ppl"], a["ppl_exact"], b["ppl_exact"], a["kl"], b["kl"], a["top1"], b["top1"],
        a["seconds"], b["seconds"]))
sys.exit(not good)
E2
}

input="--model $model --text $text --chunks ${CHUNKS:-4}"
[ -n "${CTX:-}" ] && input="$input --ctx $CTX"
for recipe in ${RECIPES:-antkv:1 antkv:4 fast:1 best:2}; do
    bits=${recipe#*:} name=${recipe%:*}
    kvbook calibrate --model "$model" --text "$text" --skip 8 --chunks 4 ${CTX:+--ctx "$CTX"} --recipe "$name" --bits "$bits" $flags -q \
        -o "$work/b.kvb" || { bad "$recipe: no book"; continue; }
    kvbook eval $input --book "$work/b.kvb" --also-bare --json -q >"$work/cpu.json"
    kvbook eval $input --book "$work/b.kvb" --also-bare --json -q --device cuda >"$work/gpu.json" || { bad "$recipe: eval --device cuda"; continue; }
    near "$recipe" "$work/cpu.json" "$work/gpu.json" 0.02
done
if kvbook eval $input --recipe kivi --bits 2 --device cuda -q >"$work/out" 2>&1; then bad "a book of scales is refused"; else
    echo "ok   a book of scales is refused: $(tail -n 1 "$work/out")"; fi
for device in cpu cuda cuda; do
    kvbook generate --model "$model" --prompt "The capital of France is" --tokens 24 --book "$work/b.kvb" --window 100000 --exact half --device $device \
        >"$work/$device.txt" 2>"$work/$device.err" || bad "generate --device $device: $(tail -n 1 "$work/$device.err")"
    [ $device = cuda ] && [ -f "$work/before.txt" ] && { cmp -s "$work/before.txt" "$work/cuda.txt" && echo "ok   generate repeats itself" || bad "generate repeats itself"; }
    [ $device = cuda ] && cp "$work/cuda.txt" "$work/before.txt"
done
cmp -s "$work/cpu.txt" "$work/cuda.txt" && echo "ok   generate with nothing coded: the CPU's text" ||
    bad "generate with nothing coded: $(cat "$work/cpu.txt") / $(cat "$work/cuda.txt")"
kvbook generate --model "$model" --prompt "The capital of France is" --tokens 64 --book "$work/b.kvb" --device cuda 2>&1 | tail -n 2 || bad "generate"
exit $status
