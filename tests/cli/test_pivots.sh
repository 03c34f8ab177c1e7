#!/bin/sh
# Pivots: a prompt's first tokens saved by the exact cache stay so in a coded one, where the token ids are the same, and nowhere else.
. "$(dirname "$0")/lib.sh"

tiny_model "$tmp/one.gguf" 1
tiny_model "$tmp/two.gguf" 2
words "$tmp/train.txt" 120 1
model="--model $tmp/one.gguf"
input="$model --text $tmp/train.txt --ctx 128 --chunks 2"
expect "calibrate --recipe intactkv" 0 'recipe intactkv' "$kvbook" calibrate $input --recipe intactkv --bits 2 -o "$work/i.kvb"
expect "verify" 0 ' 0 failed' "$kvbook" verify "$work/i.kvb" $model
expect "eval token by token" 0 'attention given the same inputs by' "$kvbook" eval $model --text "$tmp/train.txt" --ctx 128 --chunks 1 --book "$work/i.kvb" \
    --decode 64 --window 0
"$kvbook" info --json "$work/i.kvb" >"$out" 2>"$err"
json "the first token is exact" "$out" 'd["policy"]["sinks"] == 1 and d["policy"]["window"] == 128'

printf 'ab cd ef' >"$tmp/system.txt"
printf 'ab' >"$tmp/short.txt"
expect "pack the pivots" 0 'wrote' "$kvbook" pack $model --text "$tmp/system.txt" "$tmp/short.txt" -o "$work/p.kvp"
"$kvbook" info --json "$work/p.kvp" >"$out" 2>"$err"
n=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["prompts"][0]["tokens"])' "$out")
go() { # go OUT ARGUMENTS...: 60 tokens, a random draw each
    to=$1; shift
    "$kvbook" generate $model --book "$work/i.kvb" -n 60 --window 0 --ignore-eos --temperature 1 "$@" >"$to" 2>"$err" || fail "generate $*" "$(cat "$err")"
}
go "$tmp/pivots" --prompt 'ab cd ef gh' --pivots "$work/p.kvp"
if grep -q "^$n pivots from" "$err"; then ok "the longest prompt that matches"; else fail "the longest prompt that matches" "$(cat "$err")"; fi
go "$tmp/sinks" --prompt 'ab cd ef gh' --sinks "$n"
same "what sinks of as many tokens say" "$tmp/pivots" "$tmp/sinks"
go "$tmp/plain" --prompt 'ab cd ef gh'
if cmp -s "$tmp/plain" "$tmp/pivots"; then fail "pivots count" "the same tokens as without"; else ok "pivots count"; fi
go "$tmp/pivots" --prompt 'ab cd ef' --pivots "$work/p.kvp"
go "$tmp/sinks" --prompt 'ab cd ef' --sinks "$n"
same "a prompt that is all pivots" "$tmp/pivots" "$tmp/sinks"
go "$tmp/pivots" --prompt 'zz cd ef gh' --pivots "$work/p.kvp"
if grep -q 'no pivots: the prompt begins with none' "$err"; then ok "another prompt is told"; else fail "another prompt is told" "$(cat "$err")"; fi
go "$tmp/plain" --prompt 'zz cd ef gh'
same "another prompt has none" "$tmp/pivots" "$tmp/plain"

"$kvbook" calibrate -q --model "$tmp/two.gguf" --text "$tmp/train.txt" --ctx 128 --chunks 2 --recipe intactkv --bits 2 -o "$work/two.kvb" 2>"$err"
refuse "pivots of another model than the book's" 6 'p\.kvp: .*another model.*pack the prompt again' "$kvbook" generate --model "$tmp/two.gguf" --book "$work/two.kvb" \
    --prompt 'ab cd' --pivots "$work/p.kvp"
"$kvbook" calibrate -q $input --recipe antkv --k 4x16 --v 4x16 -o "$work/a.kvb" 2>"$err"
"$kvbook" pack -q $model --book "$work/a.kvb" --text "$tmp/system.txt" -o "$work/coded.kvp" 2>"$err"
refuse "pivots that a book coded" 6 'pivots are lossless: pack it again without --book' "$kvbook" generate $model --book "$work/a.kvb" --prompt 'ab cd' \
    --pivots "$work/coded.kvp"
refuse "pivots without a book" 2 'means nothing without --book' "$kvbook" generate $model --prompt 'ab cd' --pivots "$work/p.kvp"
refuse "pivots and a packed cache" 2 'does not go with --cache' "$kvbook" generate $model --cache "$work/p.kvp" --cache-name system --pivots "$work/p.kvp"
refuse "no file" 4 . "$kvbook" generate $model --book "$work/i.kvb" --prompt 'ab cd' --pivots "$work/none.kvp"
done_testing
