#!/bin/sh
# Bad files and bad text: each is refused with its exit code and one line that names it, and nothing is left behind.
. "$(dirname "$0")/lib.sh"

tiny_model "$tmp/tiny.gguf" 1
words "$tmp/text.txt" 120 1
model="--model $tmp/tiny.gguf"
text="--text $tmp/text.txt --ctx 128 --chunks 4"
recipe="--recipe antkv --k 4x16 --v 4x16"
"$kvbook" calibrate -q $model $text $recipe -o "$tmp/good.kvb" 2>"$err" || fail "set-up" "calibrate"
"$kvbook" capture -q $model $text -o "$tmp/good.kvc" 2>"$err" || fail "set-up" "capture"

: >"$tmp/empty"
mkdir "$tmp/folder"
mkfifo "$tmp/fifo"
ln -s "$tmp/loop" "$tmp/loop"
printf 'neither a model nor a book, but text' >"$tmp/other"

# Anything that is not the file asked for, wherever a file is read. `timeout`: a FIFO must not block.
for kind in missing:4 folder:4 fifo:4 loop:4 empty:3 other:3; do
    name=${kind%:*}; code=${kind#*:}; file=$tmp/$name
    model_code=$code
    [ $name = folder ] && model_code=3 # a folder may be a model; an empty one is none
    refuse "model: $name" "$model_code" "$name" timeout 20 "$kvbook" eval --model "$file" $text
    refuse "book: $name" "$code" "$name" timeout 20 "$kvbook" eval $model $text --book "$file"
    refuse "capture: $name" "$code" "$name" timeout 20 "$kvbook" train "$file" $recipe -o "$work/b.kvb"
    refuse "info: $name" "$code" "$name" timeout 20 "$kvbook" info "$file"
    [ $name = other ] && continue
    refuse "text: $name" "$code" "$name" timeout 20 "$kvbook" eval $model --text "$file" --ctx 128
    [ $name = empty ] && code=2
    refuse "prompt file: $name" "$code" . timeout 20 "$kvbook" generate $model --prompt-file "$file"
done

truncated() { # truncated FILE BYTES: its first bytes
    head -c "$2" "$1" >"$tmp/cut"
}
for part in 1 7 60 128 1000 2000; do
    truncated "$tmp/good.kvb" $part
    refuse "book of $part bytes" 3 'cut' "$kvbook" verify "$tmp/cut"
    truncated "$tmp/good.kvc" $part
    refuse "capture of $part bytes" 3 'cut' "$kvbook" train "$tmp/cut" $recipe -o "$work/b.kvb"
    truncated "$tmp/tiny.gguf" $part
    refuse "model of $part bytes" 3 'cut' "$kvbook" eval --model "$tmp/cut" $text
done
# One flipped byte in the middle of the centroids.
python3 - "$tmp/good.kvb" "$tmp/flipped.kvb" <<'PY'
import sys
data = bytearray(open(sys.argv[1], "rb").read())
data[len(data) // 2] ^= 0x40
open(sys.argv[2], "wb").write(data)
PY
refuse "book with a flipped byte" 3 'flipped' "$kvbook" verify "$tmp/flipped.kvb"
cp "$tmp/good.kvb" "$tmp/longer.kvb"; printf x >>"$tmp/longer.kvb"
refuse "book with a trailing byte" 3 'longer' "$kvbook" info "$tmp/longer.kvb"
for file in tests/golden-errors/*.kvb; do
    code=3
    "$kvbook" info "$file" >"$out" 2>"$err"
    got=$?
    [ $got -eq $code ] || fail "$file" "exit code $got, expected $code"
done
ok "every golden error is refused by info"

# Text
printf 'a few words' >"$tmp/short.txt"
refuse "text shorter than a chunk" 3 '128' "$kvbook" eval $model --text "$tmp/short.txt" --ctx 128
refuse "all chunks skipped" 3 . "$kvbook" eval $model --text "$tmp/text.txt" --ctx 128 --skip 100000
refuse "context beyond the model's" 2 'trained for 256' "$kvbook" eval $model --text "$tmp/text.txt" --ctx 257
refuse "ctx of a terabyte" 2 -- "$kvbook" eval $model --text "$tmp/text.txt" --ctx 1099511627776
{ printf '{"text": "fine"}\n'; printf '{"txet": "not fine"}\n'; } >"$tmp/bad.jsonl"
refuse "jsonl without the field" 3 '(line 2|:2)' "$kvbook" eval $model --text "$tmp/bad.jsonl" --ctx 128
printf '{"text": "cut' >"$tmp/cut.jsonl"
refuse "jsonl cut short" 3 . "$kvbook" eval $model --text "$tmp/cut.jsonl" --ctx 128
{ cat "$tmp/text.txt"; printf '\377\376\200 \000 \303'; cat "$tmp/text.txt"; } >"$tmp/binary.txt"
expect "text that is not UTF-8 is read all the same" 0 '^exact' "$kvbook" eval $model --text "$tmp/binary.txt" --ctx 128 --chunks 2

# Training
refuse "d does not divide D" 2 . "$kvbook" train "$tmp/good.kvc" --recipe antkv --k 5x16 --v 4x16 -o "$work/b.kvb"
refuse "fewer rows than centroids" 2 . "$kvbook" train "$tmp/good.kvc" --recipe antkv --k 4x4096 --v 4x16 -o "$work/b.kvb"
refuse "a capture twice" 6 'both hold chunk 0' "$kvbook" train "$tmp/good.kvc" "$tmp/good.kvc" $recipe -o "$work/b.kvb"
refuse "a book in place of a capture" 3 . "$kvbook" train "$tmp/good.kvb" $recipe -o "$work/b.kvb"

# Books that are whole but worthless: each check that verify makes of quality fails once and is named.
fails_check() { # fails_check NAME PATTERN, of worthless.kvb
    "$kvbook" verify "$tmp/worthless.kvb" >"$out" 2>"$err"
    code=$?
    if [ $code -eq 1 ] && grep -q "^FAILED $2" "$out" && grep -q '1 of [0-9]* checks failed' "$err"; then ok "verify: $1"
    else fail "verify: $1" "exit code $code, expected 1 with the check named"; fi
}
worthless() { # worthless NAME PATTERN TRAIN HELDOUT USAGE
    python3 tests/cli/rewrite_quality.py "$tmp/good.kvb" "$tmp/worthless.kvb" "$3" "$4" "$5"
    fails_check "$1" "$2"
}
worthless "training error of 1" 'training error: layer 0, KV head 0, keys, group 0: found 1,' 1 0.5 1
worthless "held-out error above 1" 'held-out error: .* found 1.25,' 0.5 1.25 1
worthless "unknown training error" 'training error: .* found nan,' nan 0.5 1
worthless "centroids that nothing uses" 'centroid usage: .* found 0.25,' 0.5 0.5 0.25
python3 tests/cli/rewrite_quality.py "$tmp/good.kvb" "$tmp/fine.kvb" 0.5 nan 1
expect "verify: no held-out error is no failure" 0 ' 0 failed' "$kvbook" verify "$tmp/fine.kvb"
python3 tests/cli/rewrite_centroids.py "$tmp/good.kvb" "$tmp/worthless.kvb" 7
fails_check "7 distinct centroids of 16" 'distinct: layer 0, KV head 0, keys, group 0: found 7,'
python3 tests/cli/rewrite_centroids.py "$tmp/good.kvb" "$tmp/fine.kvb" 8
expect "verify: half of the centroids distinct" 0 ' 0 failed' "$kvbook" verify "$tmp/fine.kvb"
"$kvbook" verify tests/golden/minimal.kvb >"$out" 2>"$err"
code=$?
if [ $code -eq 1 ] && grep -q '^FAILED quality: layer 0, KV head 0, keys' "$out"; then ok "verify: no quality records"
else fail "verify: no quality records" "exit code $code, expected 1 with the check named"; fi
done_testing
