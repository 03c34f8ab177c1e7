#!/bin/sh
# Valid files that do not belong together: exit 6, with named overrides for all but geometry.
. "$(dirname "$0")/lib.sh"

tiny_model "$tmp/one.gguf" 1
tiny_model "$tmp/two.gguf" 2
words "$tmp/text.txt" 120 1
text="--text $tmp/text.txt --ctx 128 --chunks 2"
"$kvbook" calibrate -q --model "$tmp/one.gguf" $text --recipe antkv --k 4x16 --v 4x16 -o "$tmp/one.kvb" 2>"$err" ||
    fail "set-up" "calibrate"

refuse "eval: another model" 6 'another model.*--allow-model-mismatch' \
    "$kvbook" eval --model "$tmp/two.gguf" $text --book "$tmp/one.kvb"
refuse "generate: another model" 6 '--allow-model-mismatch' \
    "$kvbook" generate --model "$tmp/two.gguf" --prompt abc --book "$tmp/one.kvb"
refuse "the other override does not help" 6 '--allow-model-mismatch' \
    "$kvbook" eval --model "$tmp/two.gguf" $text --book "$tmp/one.kvb" --allow-tokenizer-mismatch
expect "eval: another model, allowed" 0 '^one\.kvb' \
    "$kvbook" eval --model "$tmp/two.gguf" $text --book "$tmp/one.kvb" --allow-model-mismatch
expect "generate: another model, allowed" 0 'new ones' \
    "$kvbook" generate --model "$tmp/two.gguf" --prompt abc -n 4 --ignore-eos --book "$tmp/one.kvb" --allow-model-mismatch
expect "verify: the right model" 0 ' 0 failed' "$kvbook" verify "$tmp/one.kvb" --model "$tmp/one.gguf"
"$kvbook" verify "$tmp/one.kvb" --model "$tmp/two.gguf" >"$out" 2>"$err"
code=$?
if [ $code -eq 6 ]; then ok "verify: another model"; else fail "verify: another model" "exit code $code, expected 6"; fi
refuse "the second of two books" 6 'two\.kvb' sh -c "cp '$tmp/one.kvb' '$tmp/two.kvb' &&
    '$kvbook' eval --model '$tmp/two.gguf' $text --book '$tmp/two.kvb' '$tmp/one.kvb'"
refuse "golden book of another geometry" 6 'layer' "$kvbook" eval --model "$tmp/one.gguf" $text --book tests/golden/full.kvb \
    --allow-model-mismatch --allow-tokenizer-mismatch

# The same weights and geometry with one word of the vocabulary spelt otherwise.
python3 - "$tmp/one.gguf" "$tmp/spelt.gguf" <<'PY'
import sys
data = open(sys.argv[1], "rb").read()
at = data.index(b"<|im_start|>")
open(sys.argv[2], "wb").write(data[:at] + b"<|im_START|>" + data[at + 12:])
PY
refuse "another tokenizer" 6 'another tokenizer.*--allow-tokenizer-mismatch' \
    "$kvbook" eval --model "$tmp/spelt.gguf" $text --book "$tmp/one.kvb" --allow-model-mismatch
expect "another tokenizer, allowed" 0 '^one\.kvb' "$kvbook" eval --model "$tmp/spelt.gguf" $text --book "$tmp/one.kvb" \
    --allow-model-mismatch --allow-tokenizer-mismatch

# The same model but for its RoPE base: keys are not where the book thinks they are.
python3 - "$tmp/one.gguf" "$tmp/turned.gguf" <<'PY'
import struct, sys
data = open(sys.argv[1], "rb").read()
at = data.index(b"llama.rope.freq_base") + len(b"llama.rope.freq_base") + 4
assert struct.unpack_from("<f", data, at)[0] == 10000
open(sys.argv[2], "wb").write(data[:at] + struct.pack("<f", 5000) + data[at + 4:])
PY
refuse "another RoPE base has no override" 6 'RoPE base 10000, the model has 5000' \
    "$kvbook" eval --model "$tmp/turned.gguf" $text --book "$tmp/one.kvb" --allow-model-mismatch --allow-tokenizer-mismatch

# A layer that the book leaves exact: codes are not looked at there, but its shape must be the model's all the same.
unsupported() { # unsupported OUT.kvb FIELD=VALUE...
    python3 tests/cli/rewrite_layer.py "$tmp/one.kvb" "$@"
}
unsupported "$tmp/exact.kvb"
expect "a layer left exact" 0 '^exact\.kvb' "$kvbook" eval --model "$tmp/one.gguf" $text --book "$tmp/exact.kvb"
for case in heads=1024:'query heads 1024' head_dim=1024:'head dimension 1024' scale=3:'attention scale 3' \
    base=777:'RoPE base 777' style=2:'RoPE style 2' "heads=1024 kv_heads=1024:heads 1024"; do
    unsupported "$tmp/hostile.kvb" ${case%%:*}
    refuse "a layer left exact, with ${case%%:*}" 6 "${case#*:}, the model has" "$kvbook" eval --model "$tmp/one.gguf" \
        $text --book "$tmp/hostile.kvb" --allow-model-mismatch --allow-tokenizer-mismatch
done

stories=../shared/data/stories260K
if [ -f $stories/stories260K.bin ]; then
    refuse "another geometry has no override" 6 'layers|heads' "$kvbook" eval --model $stories/stories260K.bin \
        --tokenizer $stories/tok512.bin $text --book "$tmp/one.kvb" --allow-model-mismatch --allow-tokenizer-mismatch
else
    skip "another geometry" "no ../shared/data/stories260K here"
fi
done_testing
