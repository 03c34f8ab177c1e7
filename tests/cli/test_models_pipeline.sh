#!/bin/sh
# The whole pipeline on models whose layers differ: a folder of Gemma 3's kind, and one of Qwen3's in several files.
. "$(dirname "$0")/lib.sh"

cat LICENSE CONTRIBUTING.md spec/kvb-1.md | head -c 30000 >"$tmp/text.txt"
for name in gemma3 qwen3-shards; do
    model=$tmp/$name
    python3 tests/reference/tiny.py $name folder "$model"
    input="--model $model --text $tmp/text.txt --ctx 64"
    expect "$name: capture" 0 'wrote .*kvc' "$kvbook" capture $input --chunks 24 -o "$work/$name.kvc"
    expect "$name: train" 0 'wrote .*kvb' "$kvbook" train "$work/$name.kvc" --recipe antkv --k 4x16 --v 4x16 -o "$work/$name.kvb"
    expect "$name: calibrate" 0 'wrote .*kvb' "$kvbook" calibrate $input --chunks 24 --recipe antkv --k 4x16 --v 4x16 -o "$work/$name-2.kvb"
    same "$name: calibrate gives the bytes of capture and train" "$work/$name.kvb" "$work/$name-2.kvb"
    expect "$name: eval" 0 '"ppl"' "$kvbook" eval $input --skip 24 --chunks 2 --book "$work/$name.kvb" --json
    expect "$name: eval by decoding" 0 'ppl|perplexity' "$kvbook" eval $input --skip 24 --chunks 1 --book "$work/$name.kvb" --decode 32
    expect "$name: tune" 0 '.' "$kvbook" tune "$work/$name.kvb" $input --chunks 8 --tune 1 --tune-objective kl -o "$work/$name-tuned.kvb"
    expect "$name: verify against the model" 0 '.' "$kvbook" verify "$work/$name.kvb" --model "$model"
    expect "$name: generate" 0 '.' "$kvbook" generate --model "$model" --book "$work/$name.kvb" --prompt "the" -n 8
done
"$kvbook" info --json "$work/gemma3.kvb" >"$tmp/info.json" 2>"$err"
python3 - "$tmp/info.json" <<'PY' && ok "a book of Gemma 3 knows which layers slide" || fail "a book of Gemma 3" "layers: $(head -c 600 "$tmp/info.json")"
import json, sys
layers = json.load(open(sys.argv[1]))["layers"]
want = [("sliding", 1e4)] * 5 + [("full", 1e6), ("sliding", 1e4)]
sys.exit([(l["kind"], l["rope_base"]) for l in layers] != want)
PY
python3 tests/reference/tiny.py gemma3 gguf "$tmp/gemma3.gguf"
expect "a book of another file of the same model is refused" 6 'weights|model' "$kvbook" eval --model "$tmp/gemma3.gguf" \
    --text "$tmp/text.txt" --ctx 64 --chunks 1 --book "$work/gemma3.kvb"
done_testing
