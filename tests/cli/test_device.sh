#!/bin/sh
# --device: the CPU by default and by name, and exit code 7 where a GPU is asked for and there is none.
. "$(dirname "$0")/lib.sh"

tiny_model "$tmp/m.gguf" 1
words "$tmp/t.txt" 100 1
run="--model $tmp/m.gguf --text $tmp/t.txt --ctx 64 --chunks 4"
recipe="--recipe antkv --k 4x16 --v 4x16"
refuse "a device of no name" 2 '--device: found "gpu"' "$kvbook" calibrate $run $recipe --device gpu -o "$work/b"
refuse "a GPU twice" 2 'cuda:all, or GPUs by number such as cuda:0,1' "$kvbook" calibrate $run $recipe --device cuda:1,1 -o "$work/b"
refuse "a GPU of no number" 2 '--device: found "cuda:x"' "$kvbook" train "$tmp/c.kvc" $recipe --device cuda:x -o "$work/b"
expect "eval --device cpu" 0 exact "$kvbook" eval $run --device cpu
expect "calibrate --device cpu" 0 'relative error' "$kvbook" calibrate $run $recipe --device cpu -o "$tmp/cpu.kvb"
expect "calibrate" 0 'relative error' "$kvbook" calibrate $run $recipe -o "$tmp/none.kvb"
same "the CPU is the default" "$tmp/cpu.kvb" "$tmp/none.kvb"
cuda="--device cuda"
refuse "eval --decode on a GPU" 2 '--decode: compares two ways of running on the CPU' "$kvbook" eval $run --book "$tmp/cpu.kvb" --decode 8 $cuda
refuse "eval of a whole chunk's anchors on a GPU" 2 '--anchor-protocol: chunk is scored on the CPU' \
    "$kvbook" eval $run --book "$tmp/cpu.kvb" --anchor-protocol chunk $cuda
refuse "generate on a GPU without a book" 2 'needs a --book' "$kvbook" generate --model "$tmp/m.gguf" --prompt a $cuda
refuse "generate on a GPU from a packed prompt" 2 '--cache: does not go with --device' "$kvbook" generate --model "$tmp/m.gguf" --cache "$tmp/p" $cuda
expect "generate --device cpu" 0 . "$kvbook" generate --model "$tmp/m.gguf" --prompt a --tokens 2 --book "$tmp/cpu.kvb" --device cpu
expect "capture" 0 . "$kvbook" capture $run -o "$tmp/c.kvc"
if nvidia-smi >/dev/null 2>&1; then
    skip "--device cuda without a device" "this machine has one: make check-cuda-calib"
    done_testing
fi
refuse "calibrate --device cuda" 7 '--device cuda: ' "$kvbook" calibrate $run $recipe --device cuda -o "$work/b"
refuse "calibrate --device cuda:all" 7 '--device cuda: ' "$kvbook" calibrate $run $recipe --device cuda:all -o "$work/b"
refuse "capture --device cuda:0,1" 7 '--device cuda: ' "$kvbook" capture $run --device cuda:0,1 -o "$work/c"
refuse "capture --device cuda" 7 '--device cuda: ' "$kvbook" capture $run --device cuda -o "$work/c"
refuse "train --device cuda" 7 '--device cuda: ' "$kvbook" train "$tmp/c.kvc" $recipe --device cuda -o "$work/b"
refuse "eval --device cuda" 7 '--device cuda: ' "$kvbook" eval $run --book "$tmp/cpu.kvb" $cuda
refuse "generate --device cuda" 7 '--device cuda: ' "$kvbook" generate --model "$tmp/m.gguf" --prompt a --book "$tmp/cpu.kvb" $cuda
refuse "eval --recipe --device cuda" 7 '--device cuda: ' "$kvbook" eval $run --calib-text "$tmp/t.txt" --calib-chunks 4 $recipe --device cuda
done_testing
