#!/bin/sh
# What the command line accepts, refuses and suggests; nothing here needs a model.
. "$(dirname "$0")/lib.sh"

expect "version" 0 '^kvbook [0-9]+\.[0-9]+\.[0-9]+$' "$kvbook" --version
expect "help lists commands" 0 '^  calibrate ' "$kvbook" --help
expect "help names exit codes" 0 '130 interrupted' "$kvbook" --help
for command in capture train tune calibrate eval generate pack info verify report recipes bench; do
    expect "help of $command" 0 "^usage: kvbook $command" "$kvbook" $command --help
    expect "version of $command" 0 '^kvbook [0-9]' "$kvbook" $command --version
done
expect "help wins over what is missing" 0 'usage: kvbook eval' "$kvbook" eval --book nothing.kvb -h
refuse "no command" 2 'kvbook --help' "$kvbook"
refuse "unknown command" 2 'evla: unknown command; did you mean eval\?' "$kvbook" evla
refuse "flag before the command" 2 'expected a command first' "$kvbook" --model x eval
refuse "unknown flag" 2 'chnks: unknown flag .* did you mean --chunks\?' "$kvbook" eval --chnks 3
refuse "unknown flag with a value" 2 '^kvbook: error: --modle: .* --model\?' "$kvbook" eval --modle=x
refuse "flag of another command" 2 '--prompt: unknown flag of `kvbook eval`' "$kvbook" eval --prompt x
refuse "missing required flag" 2 '--model: missing' "$kvbook" eval --text x
refuse "missing output" 2 '--output: missing' "$kvbook" calibrate --model x --text y --recipe antkv --bits 1
refuse "missing value at the end" 2 '--ctx: needs a value' "$kvbook" eval --model x --text y --ctx
refuse "missing value before a flag" 2 '--model: needs a value' "$kvbook" eval --model --text y
refuse "given twice" 2 '--ctx: given twice' "$kvbook" eval --model x --text y --ctx 5 --ctx 6
refuse "value for a switch" 2 '--json: takes no value' "$kvbook" eval --model x --text y --json=yes
refuse "unexpected word" 2 'unexpected word' "$kvbook" eval --model x --text y --json word
refuse "empty value" 2 '--model: found ""' "$kvbook" eval --model= --text y
for value in 0 1 -5 +5 5.0 1e3 0x10 5x '' ' 5' 99999999999999999999; do
    refuse "--ctx '$value'" 2 '--ctx: found .* expected a whole number' "$kvbook" eval --model x --text y --ctx="$value"
done
for value in -1% 101% 1.5 nan inf 0x1 1%% x ''; do
    refuse "--anchors '$value'" 2 '--anchors: found .* percentage' "$kvbook" eval --model x --text y --anchors="$value"
done
for value in 4X -1G 1.5G G 99999999T ''; do
    refuse "--max-memory '$value'" 2 '--max-memory: found .* such as 500M' \
        "$kvbook" calibrate --model x --text y -o "$work/b" --recipe antkv --bits 1 --max-memory="$value"
done
refuse "choice" 2 '--anchor-score: found "exact", did you mean exact-[kv]\? .*key-norm' \
    "$kvbook" eval --model x --text y --anchor-score exact
refuse "recipe misspelt" 2 'antkv' "$kvbook" calibrate --model x --text y -o "$work/b" --recipe antvk --bits 1
refuse "recipe missing" 2 '--recipe: missing' "$kvbook" calibrate --model x --text y -o "$work/b" --bits 1
refuse "bits missing" 2 '--bits: missing' "$kvbook" calibrate --model x --text y -o "$work/b" --recipe antkv
refuse "bits unknown" 2 '0\.375' "$kvbook" calibrate --model x --text y -o "$work/b" --recipe antkv --bits 1.7
for shape in 8 add:8x16 add:8x16+8 x256 8x 0x256 8x3 8x1 8x131072 8x256x2 8X256; do
    refuse "shape $shape" 2 . "$kvbook" calibrate --model x --text y -o "$work/b" --recipe antkv --bits 1 --k $shape
done
refuse "eval --recipe without text to calibrate on" 2 'calib-text' "$kvbook" eval --model x --text y --recipe antkv --bits 1
refuse "eval --bits without a recipe" 2 'without --recipe' "$kvbook" eval --model x --text y --bits 1
refuse "eval --no-exact without a book" 2 'nothing to score' "$kvbook" eval --model x --text y --no-exact
for flag in "--anchors 1%" "--anchor-score key-norm" "--window 3" "--sinks 0" "--exact fine" "--anchor-protocol chunk"; do
    refuse "eval $flag without a book" 2 "${flag%% *}: .*without --book" "$kvbook" eval --model x --text y $flag
done
for flag in "--calib-text z" "--calib-chunks 1" "--calib-skip 1" "--max-memory 1G" "--on-nan stop"; do
    refuse "eval $flag without a recipe" 2 "${flag%% *}: .*without --recipe" "$kvbook" eval --model x --text y --book z $flag
done
refuse "generate without a prompt" 2 'exactly one of --prompt' "$kvbook" generate --model x
refuse "generate --exact without a book" 2 '--exact: .*without --book' "$kvbook" generate --model x --prompt y --exact half
refuse "eval --exact of another word" 2 'did you mean .?fine' "$kvbook" eval --model x --text y --book z --exact fin
refuse "generate --window without a book" 2 'without --book' "$kvbook" generate --model x --prompt y --window 3
refuse "info of nothing" 2 'expected one book' "$kvbook" info
refuse "bos and no-bos" 2 'choose one' "$kvbook" eval --model x --text y --bos --no-bos

expect "recipes" 0 '^antkv .*2506\.19505' "$kvbook" recipes
expect "recipes list" 0 '^cq ' "$kvbook" recipes list
"$kvbook" recipes --json >"$tmp/recipes.json"
json "recipes --json" "$tmp/recipes.json" 'd["schema"] == 1 and {"antkv", "cq"} <= {r["name"] for r in d["recipes"]}'
"$kvbook" recipes show antkv >"$tmp/mine.json"
json "recipes show" "$tmp/mine.json" 'd["name"] == "antkv"'
expect "recipes show of a file" 0 '"antkv"' "$kvbook" recipes show "$tmp/mine.json"
refuse "recipes show of nothing known" 2 'antkv' "$kvbook" recipes show antvk
refuse "recipes of another word" 2 'recipes show NAME' "$kvbook" recipes print
sed 's/"frame"/"farme"/' "$tmp/mine.json" >"$tmp/bad.json"
refuse "recipe file with an unknown key" 3 'frame' \
    "$kvbook" calibrate --model x --text y -o "$work/b" --recipe "$tmp/bad.json" --bits 1

if [ -w /dev/full ]; then
    "$kvbook" recipes >/dev/full 2>"$err"
    code=$?
    if [ $code -eq 4 ] && grep -q 'standard output' "$err"; then ok "full disk behind stdout"; else
        fail "full disk behind stdout" "exit code $code, expected 4"; fi
else
    skip "full disk behind stdout" "no /dev/full here"
fi
done_testing
