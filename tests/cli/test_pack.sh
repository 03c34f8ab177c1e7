#!/bin/sh
# Packed caches: what goes on from a file says what the cache that never left memory says; what does not fit is refused.
. "$(dirname "$0")/lib.sh"

tiny_model "$tmp/one.gguf" 1
tiny_model "$tmp/two.gguf" 2
words "$tmp/text.txt" 120 1
words "$tmp/system.txt" 4 2
words "$tmp/other.txt" 2 3
: >"$tmp/nothing.txt"
for seed in 1 2; do
    "$kvbook" calibrate -q --model "$tmp/one.gguf" --text "$tmp/text.txt" --ctx 128 --chunks 2 --recipe antkv --k 4x16 \
        --v 4x16 --seed $seed --window 16 --anchors 5% -o "$tmp/one$seed.kvb" 2>"$err" || fail "set-up" "calibrate"
done
model="--model $tmp/one.gguf"
book="--book $tmp/one1.kvb"
text="--text $tmp/system.txt $tmp/other.txt"

expect "pack two prompts" 0 'wrote .*two\.kvp' "$kvbook" pack $model $book $text -o "$work/two.kvp"
expect "pack them with zlib" 0 'wrote' "$kvbook" pack $model $book $text --zlib -o "$work/zlib.kvp"
expect "pack without a book" 0 'wrote' "$kvbook" pack $model --text "$tmp/system.txt" -o "$work/exact.kvp"
"$kvbook" pack -q $model $book $text -o "$work/again.kvp" 2>"$err"
same "the same bytes again" "$work/two.kvp" "$work/again.kvp"
OMP_NUM_THREADS=1 "$kvbook" pack -q --threads 1 $model $book $text -o "$work/again.kvp" 2>"$err"
same "the same bytes with one thread" "$work/two.kvp" "$work/again.kvp"
if [ "$(wc -c <"$work/zlib.kvp")" -lt "$(wc -c <"$work/two.kvp")" ]; then ok "zlib makes it smaller"; else
    fail "zlib makes it smaller" "$(wc -c <"$work/zlib.kvp") bytes"; fi

go() { # go OUT ARGUMENTS...: 40 tokens, a random draw each
    to=$1; shift
    "$kvbook" generate -q $model -n 40 --ignore-eos --temperature 1 "$@" >"$to" 2>"$err" || fail "generate $*" "failed"
}
go "$tmp/memory" $book --prompt-file "$tmp/system.txt"
go "$tmp/file" $book --cache "$work/two.kvp" --cache-name system
same "goes on as from memory" "$tmp/memory" "$tmp/file"
go "$tmp/file" $book --cache "$work/zlib.kvp" --cache-name system
same "goes on from zlib" "$tmp/memory" "$tmp/file"
go "$tmp/memory" $book --prompt-file "$tmp/other.txt"
go "$tmp/file" $book --cache "$work/two.kvp" --cache-name other
same "the other prompt" "$tmp/memory" "$tmp/file"
go "$tmp/memory" --prompt-file "$tmp/system.txt"
go "$tmp/file" --cache "$work/exact.kvp"
same "goes on without a book" "$tmp/memory" "$tmp/file"
expect "goes on with more text" 0 'tokens came with' "$kvbook" generate $model $book --cache "$work/two.kvp" \
    --cache-name other --prompt "and then" -n 4 --ignore-eos
go "$tmp/file" $book --cache "$work/two.kvp" --cache-name other --prompt "and then"
if cmp -s "$tmp/memory" "$tmp/file"; then fail "more text counts" "the same tokens as without it"; else ok "more text counts"; fi

expect "info" 0 'system: [0-9]+ tokens' "$kvbook" info "$work/two.kvp"
"$kvbook" info --json "$work/zlib.kvp" >"$out" 2>"$err"
json "info --json" "$out" 'd["schema"] == 1 and [p["name"] for p in d["prompts"]] == ["system", "other"] and
    d["prompts"][0]["bytes"] < d["prompts"][0]["bytes_raw"] and d["meta"]["book"]["name"] == "one1.kvb" and
    d["policy"]["window"] == 16 and d["prompts"][0]["has_ids"]'
expect "info without a book" 0 'every token is exact' "$kvbook" info "$work/exact.kvp"
expect "verify" 0 '2 prompts of [0-9]+ tokens, all bytes whole' "$kvbook" verify "$work/two.kvp" $model $book
"$kvbook" verify --json "$work/zlib.kvp" >"$out" 2>"$err"
json "verify --json" "$out" 'd["ok"] and d["prompts"] == 2'
refuse "verify: another book" 6 'another book' "$kvbook" verify "$work/two.kvp" --book "$tmp/one2.kvb"
refuse "verify: another model" 6 'another model' "$kvbook" verify "$work/two.kvp" --model "$tmp/two.gguf"
refuse "verify: a book's book" 2 '--book' "$kvbook" verify "$tmp/one1.kvb" $book

# Every part missing, every kind of byte turned over.
size=$(wc -c <"$work/zlib.kvp")
wrong=0
for i in $(seq 0 59); do
    head -c $((size * i / 60)) "$work/zlib.kvp" >"$tmp/cut.kvp"
    "$kvbook" verify "$tmp/cut.kvp" >"$out" 2>"$err"
    [ $? -eq 3 ] || wrong=$((wrong + 1))
    python3 - "$work/zlib.kvp" "$tmp/cut.kvp" $(((size - 1) * i / 59)) <<'PY'
import sys
data = bytearray(open(sys.argv[1], "rb").read())
data[int(sys.argv[3])] ^= 0x10
open(sys.argv[2], "wb").write(data)
PY
    "$kvbook" verify "$tmp/cut.kvp" >"$out" 2>"$err"
    [ $? -eq 3 ] || wrong=$((wrong + 1))
done
if [ $wrong -eq 0 ]; then ok "cut short and with bytes turned"; else fail "cut short and with bytes turned" "$wrong accepted"; fi

# What does not belong together.
generate="$kvbook generate $model --cache $work/two.kvp --cache-name system"
refuse "another book" 6 'another book' $generate --book "$tmp/one2.kvb"
refuse "no book" 2 '--book: missing' $generate
refuse "a book where there was none" 6 'without a book' "$kvbook" generate $model --cache "$work/exact.kvp" $book
refuse "another model" 6 'another model.*pack the prompt again.*--allow-model-mismatch' \
    "$kvbook" generate --model "$tmp/two.gguf" --cache "$work/exact.kvp"
expect "another model, allowed" 0 'came with' \
    "$kvbook" generate --model "$tmp/two.gguf" --cache "$work/exact.kvp" -n 2 --ignore-eos --allow-model-mismatch
python3 - "$tmp/one.gguf" "$tmp/spelt.gguf" <<'PY'
import sys
data = open(sys.argv[1], "rb").read()
at = data.index(b"<|im_start|>")
open(sys.argv[2], "wb").write(data[:at] + b"<|im_START|>" + data[at + 12:])
PY
refuse "another tokenizer" 6 'another tokenizer' "$kvbook" generate --model "$tmp/spelt.gguf" \
    --cache "$work/exact.kvp" --allow-model-mismatch
refuse "which of two prompts" 2 'holds 2 prompts' "$kvbook" generate $model $book --cache "$work/two.kvp"
refuse "a prompt that is not there" 2 'it has system, other' \
    "$kvbook" generate $model $book --cache "$work/two.kvp" --cache-name nobody
refuse "a policy of its own" 2 '--window.*--cache' $generate $book --window 3
refuse "BOS in the middle" 2 '--bos' $generate $book --bos
refuse "a name without a file" 2 '--cache-name' "$kvbook" generate $model --prompt a --cache-name system
refuse "a book for a cache" 3 'not a .kvp file' "$kvbook" generate $model $book --cache "$tmp/one1.kvb"
refuse "a cache for a book" 3 'not a .kvb file' "$kvbook" generate $model --book "$work/two.kvp" --prompt a
refuse "the same name twice" 2 'prompt.name' "$kvbook" pack $model $text --name a a -o "$work/bad.kvp"
refuse "a name too few" 2 '1 names for 2 files' "$kvbook" pack $model $text --name a -o "$work/bad.kvp"
refuse "an output that is an input" 2 'is also the input' "$kvbook" pack $model --text "$tmp/other.txt" -o "$tmp/other.txt"
refuse "no text in a file" 2 'has 0 tokens' "$kvbook" pack $model --no-bos --text "$tmp/nothing.txt" -o "$work/bad.kvp"
refuse "policy without a book" 2 '--window' "$kvbook" pack $model $text --window 4 -o "$work/bad.kvp"
done_testing
