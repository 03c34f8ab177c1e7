#!/bin/sh
# What a run meets beyond files that are not what they should be: models that compute nonsense, text that teaches nothing,
# readers that could wait for ever, signals in every phase. Each ends with its exit code, one line, and nothing left.
. "$(dirname "$0")/lib.sh"

tiny_model "$tmp/tiny.gguf" 1
words "$tmp/text.txt" 400 1
model="--model $tmp/tiny.gguf"
text="--text $tmp/text.txt --ctx 128 --chunks 4"
shape="--k 4x16 --v 4x16"
recipe="--recipe antkv $shape"
"$kvbook" calibrate -q $model $text $recipe -o "$tmp/good.kvb" 2>"$err" || fail "set-up" "calibrate"
"$kvbook" capture -q $model $text -o "$tmp/good.kvc" 2>"$err" || fail "set-up" "capture"

# Nothing may wait for a writer that never comes.
mkfifo "$tmp/fifo"
for command in "verify $tmp/fifo" "recipes show $tmp/fifo" \
    "report $tmp/good.kvb --scores $tmp/fifo -o $work/r.html" "report $tmp/fifo -o $work/r.html" \
    "eval --model $tmp/tiny.gguf --tokenizer $tmp/fifo $text" "generate $model --prompt a --book $tmp/fifo" \
    "calibrate $model $text --recipe $tmp/fifo $shape -o $work/b.kvb" "calibrate $model $text $recipe -o $tmp/fifo" \
    "eval $model --text $tmp/text.txt $tmp/fifo --ctx 128"; do
    refuse "fifo: ${command%% *} ..." 4 'fifo' timeout 20 "$kvbook" $command
done
expect "fifo: verify --model" 4 'fifo' timeout 20 "$kvbook" verify "$tmp/good.kvb" --model "$tmp/fifo"
if [ "$(id -u)" = 0 ]; then
    skip "unreadable file" "root may read everything"
else
    cp "$tmp/good.kvb" "$tmp/closed.kvb"; chmod 0 "$tmp/closed.kvb"
    refuse "unreadable file" 4 'closed.kvb: cannot open' "$kvbook" info "$tmp/closed.kvb"
fi
printf '\211KVB\n\032\n' >"$tmp/text-mode.kvb"; tail -c +9 "$tmp/good.kvb" >>"$tmp/text-mode.kvb"
refuse "book that lost its carriage return" 3 'text mode' "$kvbook" info "$tmp/text-mode.kvb"
refuse "a name with line breaks stays one line" 4 'no\?such\?file' "$kvbook" info "$(printf 'no\nsuch\nfile')"
refuse "a very long name" 4 'name too long|File name' "$kvbook" info "$(printf '%05000d' 0)"

# Readers of every corpus file: refused for what it is, never by a signal.
for file in tests/fuzz/corpus/gguf/* tests/fuzz/corpus/safetensors/* tests/fuzz/corpus/json/* tests/golden-errors/*.kvb; do
    case $file in
    */gguf/*) set -- eval --model "$file" $text ;;
    */safetensors/capture-*) set -- train "$file" --recipe antkv --k 3x65536 --v 3x65536 -o "$work/b.kvb" ;;
    */safetensors/*) set -- train "$file" $recipe -o "$work/b.kvb" ;;
    */json/*) cp "$file" "$tmp/recipe.json"; set -- calibrate $model $text --recipe "$tmp/recipe.json" $shape -o "$work/b.kvb" ;;
    *) set -- verify "$file" ;;
    esac
    timeout 20 "$kvbook" "$@" >"$out" 2>"$err" </dev/null
    code=$?
    case $file:$code in */safetensors/capture-*:2) ;; */json/recipe:0) rm -f "$work/b.kvb" ;; *:3) ;; *) echo "$file: $code" ;; esac
    [ -z "$(ls -A "$work")" ] || { echo "$file: left $(ls -A "$work")"; rm -f "$work"/*; }
done >"$tmp/wrong"
if [ -s "$tmp/wrong" ]; then fail "corpora of the readers" "$(tr '\n' ' ' <"$tmp/wrong")"; else ok "corpora of the readers"; fi

# Models: one float32 tensor of the tiny GGUF set to a value throughout.
set_tensor() { # set_tensor FILE TENSOR VALUE
    python3 - "$tmp/tiny.gguf" "$@" <<'PY'
import math, struct, sys
data = bytearray(open(sys.argv[1], "rb").read())
def entry(name): # dimensions, type, offset, and where the entry ends
    name = name.encode()
    at = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
    dims = struct.unpack_from("<I", data, at)[0]
    shape = struct.unpack_from("<%dQ" % dims, data, at + 4)
    kind, offset = struct.unpack_from("<IQ", data, at + 4 + 8 * dims)
    return shape, kind, offset, at + 16 + 8 * dims
first = -(-entry("output_norm.weight")[3] // 32) * 32 # its entry is the last
shape, kind, offset, _ = entry(sys.argv[3])
assert kind == 0
struct.pack_into("<%df" % math.prod(shape), data, first + offset, *[float(sys.argv[4])] * math.prod(shape))
open(sys.argv[2], "wb").write(data)
PY
}
set_tensor "$tmp/same.gguf" blk.1.attn_norm.weight 1
expect "a tensor can be set" 0 '^exact' "$kvbook" eval --model "$tmp/same.gguf" $text
set_tensor "$tmp/nan.gguf" blk.1.ffn_norm.weight nan
refuse "NaN weight: eval" 3 'blk\.1\.ffn_norm\.weight: 64 weights are NaN' "$kvbook" eval --model "$tmp/nan.gguf" $text
refuse "NaN weight: generate" 3 'ffn_norm' "$kvbook" generate --model "$tmp/nan.gguf" --prompt a
refuse "NaN weight: calibrate" 3 'ffn_norm' "$kvbook" calibrate --model "$tmp/nan.gguf" $text $recipe -o "$work/b.kvb"
refuse "NaN weight: --on-nan is for activations" 3 'ffn_norm' \
    "$kvbook" calibrate --model "$tmp/nan.gguf" $text $recipe --on-nan quarantine -o "$work/b.kvb"
set_tensor "$tmp/inf.gguf" output_norm.weight inf
refuse "infinite weight" 3 'output_norm' "$kvbook" eval --model "$tmp/inf.gguf" $text
# Finite weights whose products are not: the keys, or only what attention makes of them.
set_tensor "$tmp/huge.gguf" blk.1.attn_norm.weight 3e38
set_tensor "$tmp/large.gguf" blk.1.attn_norm.weight 1e30
for name in huge large; do
    bad="--model $tmp/$name.gguf"
    refuse "$name weights: eval" 1 'chunk 0' "$kvbook" eval $bad $text
    refuse "$name weights: capture" 1 'layer 1, KV head 0, chunk 0, token 0' "$kvbook" capture $bad $text -o "$work/c.kvc"
    refuse "$name weights: calibrate" 1 'layer 1, KV head 0' "$kvbook" calibrate $bad $text $recipe -o "$work/b.kvb"
    refuse "$name weights: no row left" 1 'layer 1, KV head 0' \
        "$kvbook" calibrate $bad $text $recipe --on-nan quarantine -o "$work/b.kvb"
done
refuse "huge weights: generate" 1 'keys: layer 1' "$kvbook" generate --model "$tmp/huge.gguf" --prompt a -n 3
set_tensor "$tmp/last.gguf" blk.1.ffn_norm.weight 3e38
refuse "huge weights after the last attention: generate" 1 'logit of token 0 after 1 tokens' \
    "$kvbook" generate --model "$tmp/last.gguf" --prompt a -n 3
refuse "huge weights after the last attention: eval" 1 'chunk 0' "$kvbook" eval --model "$tmp/last.gguf" $text
expect "the cache of that model is well" 0 wrote "$kvbook" capture --model "$tmp/last.gguf" $text -o "$tmp/last.kvc"
set_tensor "$tmp/loud.gguf" blk.1.attn_norm.weight 1e5
expect "saturated keys are said: capture" 0 'warning: [0-9]+ elements of keys and values were beyond 65504' \
    "$kvbook" capture -q --model "$tmp/loud.gguf" $text -o "$tmp/loud.kvc"
expect "saturated keys are said: calibrate, which finds no key to tell from another" 1 'warning: [0-9]+ elements of keys and values were beyond 65504' \
    "$kvbook" calibrate -q --model "$tmp/loud.gguf" $text $recipe -o "$tmp/loud.kvb"
set_tensor "$tmp/zero.gguf" blk.1.attn_norm.weight 0
refuse "keys that are all zero" 1 'layer 1' "$kvbook" calibrate --model "$tmp/zero.gguf" $text $recipe -o "$work/b.kvb"

# A capture from elsewhere with numbers that are none.
set_capture() { # set_capture FILE ARRAY HEX: the bytes of its first element
    python3 - "$tmp/good.kvc" "$@" <<'PY'
import json, struct, sys
data = bytearray(open(sys.argv[1], "rb").read())
size = struct.unpack_from("<Q", data)[0]
begin = json.loads(data[8:8 + size])[sys.argv[3]]["data_offsets"][0] + 8 + size
value = bytes.fromhex(sys.argv[4])
data[begin:begin + len(value)] = value
open(sys.argv[2], "wb").write(data)
PY
}
set_capture "$tmp/key.kvc" layers.0.keys 007e
refuse "capture with a NaN key" 1 'layer 0' "$kvbook" train "$tmp/key.kvc" $recipe -o "$work/b.kvb"
set_capture "$tmp/weight.kvc" layers.1.weight_v 0000c07f
refuse "capture with a NaN weight" 1 'layer 1' "$kvbook" train "$tmp/weight.kvc" $recipe -o "$work/b.kvb"
set_capture "$tmp/negative.kvc" layers.1.weight_k 000080bf
refuse "capture with a negative weight" 1 'layer 1' "$kvbook" train "$tmp/negative.kvc" $recipe -o "$work/b.kvb"

# Text that teaches nothing, and shapes that do not fit: refused before the capture where that can be known.
printf '%020000d' 0 | tr 0 a >"$tmp/same.txt"
refuse "the same token throughout" 1 'all rows are equal' \
    "$kvbook" calibrate $model --text "$tmp/same.txt" --ctx 128 $recipe -o "$work/b.kvb"
no_capture() { # no_capture NAME: the last command said nothing of a finished capture
    if grep -q '^capture:' "$err"; then fail "$1, before the capture" "after it"; else ok "$1, before the capture"; fi
}
refuse "d that does not divide D" 2 'do not divide a head of 16' \
    "$kvbook" calibrate $model $text --recipe antkv --k 3x16 --v 4x16 -o "$work/b.kvb"
no_capture "d that does not divide D"
refuse "fewer rows than centroids" 2 '512 tokens for 1024 centroids' \
    "$kvbook" calibrate $model $text --recipe antkv --k 4x16 --v 4x1024 -o "$work/b.kvb"
no_capture "fewer rows than centroids"
refuse "fewer sampled rows than centroids" 2 'for 256 centroids' \
    "$kvbook" calibrate $model $text --recipe antkv --k 4x256 --v 4x16 -o "$work/b.kvb" \
    --max-memory "$(less_memory 0.4 $model $text --recipe antkv --k 4x256 --v 4x16)"
no_capture "fewer sampled rows than centroids"
refuse "eval --recipe heeds --max-memory" 5 'is too little for model, text' \
    "$kvbook" eval $model $text --recipe antkv --k 4x256 --v 4x16 --calib-text "$tmp/text.txt" --max-memory 40K
refuse "neither does --dry-run accept them" 2 'do not divide' \
    "$kvbook" calibrate $model $text --recipe antkv --k 3x16 --v 4x16 --dry-run -o "$work/b.kvb"

# Signals, in the phase that is named. The process that must end is watched, not the clock: the handler is there once the
# kernel knows it, training once the capture has said that it ended.
signal_in() { # signal_in NAME SIGNAL PATTERN COMMAND...: after stderr matches PATTERN
    signal_name=$1 signal=$2 pattern=$3
    shift 3
    before=$(ls -A "$work")
    python3 - "$err" "$signal" "$pattern" "$@" <<'PY'
import re, signal, subprocess, sys, time
path, name, pattern = sys.argv[1:4]
signal.signal(signal.SIGINT, signal.default_int_handler)
def caught(pid):
    with open("/proc/%d/status" % pid) as status:
        mask = int(re.search(r"SigCgt:\s*(\w+)", status.read()).group(1), 16)
    return mask >> (signal.SIGINT - 1) & 1
with open(path, "wb") as err:
    process = subprocess.Popen(sys.argv[4:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err)
while process.poll() is None and not (caught(process.pid) and re.search(pattern, open(path).read())):
    time.sleep(0.01)
early = process.poll() is not None
process.send_signal(getattr(signal, name))
code = process.wait(30)
sys.exit(99 if early else code)
PY
    code=$?
    if [ $code -ne 130 ]; then fail "$signal_name" "exit code $code, expected 130 (99: it ended before the signal)"
    elif [ "$(grep -c '^kvbook: error: ' "$err")" -ne 1 ]; then fail "$signal_name" "expected one line of error"
    elif [ "$(ls -A "$work")" != "$before" ]; then fail "$signal_name" "left a file: $(ls -A "$work")"
    else ok "$signal_name"; fi
}
for i in 1 2 3 4 5 6 7 8; do cat "$tmp/text.txt"; done >"$tmp/long.txt"
long="--text $tmp/long.txt $tmp/long.txt $tmp/long.txt --ctx 256"
slow="--recipe antkv --k 1x8192 --v 1x8192"
printf 'old' >"$tmp/old"; cp "$tmp/old" "$work/b.kvb"
if [ -r /proc/self/status ]; then
    signal_in "SIGINT while capturing" SIGINT '' "$kvbook" calibrate $model $long $recipe -o "$work/b.kvb"
    signal_in "SIGTERM while capturing" SIGTERM '' "$kvbook" capture $model $long -o "$work/c.kvc"
    signal_in "SIGINT while training" SIGINT '^capture:' \
        "$kvbook" calibrate $model --text "$tmp/long.txt" --ctx 256 --chunks 60 $slow -o "$work/b.kvb"
    for objective in kl attention; do
        signal_in "SIGINT while tuning by $objective" SIGINT 'relative error' "$kvbook" calibrate $model --text "$tmp/long.txt" --ctx 256 --chunks 40 \
            $recipe --tune 500 --tune-objective $objective -o "$work/b.kvb"
    done
    same "the old book is as it was" "$tmp/old" "$work/b.kvb"
else
    skip "signals" "no /proc here"
fi
# Other files of this trade in place of a book: the error says what they are for.
for pair in 'kvc:a capture: `kvbook train`' 'gguf:a model: `kvbook calibrate`' 'kvp:saved caches: `kvbook verify`'; do
    echo 'something else' >"$tmp/other.${pair%%:*}"
    refuse "a .${pair%%:*} in place of a book" 3 "looks like ${pair#*:}" "$kvbook" info "$tmp/other.${pair%%:*}"
done
echo x >"$tmp/short.kvc"
refuse "a .kvc of two bytes in place of a book" 3 'looks like a capture' "$kvbook" info "$tmp/short.kvc"
done_testing
