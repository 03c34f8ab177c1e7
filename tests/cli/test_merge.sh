#!/bin/sh
# Books of parts of the layers: merged they have the bytes of a book trained whole, and what does not belong together is refused.
. "$(dirname "$0")/lib.sh"

tiny_model "$tmp/tiny.gguf" 1
tiny_model "$tmp/other.gguf" 2
words "$tmp/train.txt" 400 1
words "$tmp/more.txt" 400 2
input="--text $tmp/train.txt --ctx 128 --chunks 24"
"$kvbook" capture --model "$tmp/tiny.gguf" $input --fisher --queries -q -o "$tmp/a.kvc"
layers=$("$kvbook" train "$tmp/a.kvc" --recipe antkv --bits 1 --dry-run -o "$work/x.kvb" | sed 's/.*rows, \([0-9]*\) layers.*/\1/')
last=$((layers - 1))
[ "$layers" -ge 2 ] || fail "set-up" "the tiny model has $layers layers"

part() { "$kvbook" train "$tmp/a.kvc" --recipe $1 --layers "$2" -q -o "$tmp/$3.kvb" || fail "part $2, $1" "failed"; } # part RECIPE A-B NAME
for recipe in 'best --bits 2' 'antkv --bits 1 --k 4x16 --v 4x16' 'cq --bits 2' 'kvquant --bits 2' 'kivi --bits 2' 'ott --bits 2' 'skvq --bits 2' \
    'best-fast --bits 1 --allocate' 'antkv --k add:8x4+4 --v 4x16'; do
    "$kvbook" train "$tmp/a.kvc" --recipe $recipe -q -o "$tmp/whole.kvb" || fail "whole, $recipe" "failed"
    part "$recipe" 0 first
    part "$recipe" "1-$last" rest
    expect "merge, $recipe" 0 'of 2 parts' "$kvbook" merge "$tmp/rest.kvb" "$tmp/first.kvb" -o "$tmp/merged.kvb"
    same "the bytes of the whole, $recipe" "$tmp/whole.kvb" "$tmp/merged.kvb"
done
recipe='antkv --bits 1 --k 4x16 --v 4x16'
"$kvbook" train "$tmp/a.kvc" --recipe $recipe -q -o "$tmp/whole.kvb"
part "$recipe" "0-$last" all
same "all layers by name" "$tmp/whole.kvb" "$tmp/all.kvb"
part "$recipe" 0 first
part "$recipe" "1-$last" rest
expect "a part is a book whose other layers stay exact" 0 . "$kvbook" eval --model "$tmp/tiny.gguf" --text "$tmp/train.txt" --ctx 128 --chunks 1 --book "$tmp/first.kvb"
expect "a part verifies" 0 ' 0 failed' "$kvbook" verify "$tmp/first.kvb"

o="-o $work/x.kvb"
refuse "a layer twice" 6 'both hold layer 0; give books' "$kvbook" merge "$tmp/first.kvb" "$tmp/first.kvb" "$tmp/rest.kvb" $o
refuse "a layer in none" 6 "layers 1 to $last are in none of the books" "$kvbook" merge "$tmp/first.kvb" $o
refuse "a whole book" 6 'is not a book of a part' "$kvbook" merge "$tmp/first.kvb" "$tmp/whole.kvb" $o
part 'antkv --k 4x16 --v 4x32' "1-$last" other
refuse "another shape" 6 'META.s "training.(bits_nominal|values)" differs' "$kvbook" merge "$tmp/first.kvb" "$tmp/other.kvb" $o
part 'cq --k 4x16 --v 4x16' "1-$last" other
refuse "another recipe" 6 'META.s "recipe" differs' "$kvbook" merge "$tmp/first.kvb" "$tmp/other.kvb" $o
part "$recipe --seed 2" "1-$last" other
refuse "another seed" 6 'META.s "training.seed" differs' "$kvbook" merge "$tmp/first.kvb" "$tmp/other.kvb" $o
part "$recipe --window 7" "1-$last" other
refuse "another policy" 6 'keep other tokens exact' "$kvbook" merge "$tmp/first.kvb" "$tmp/other.kvb" $o
"$kvbook" capture --model "$tmp/other.gguf" $input -q -o "$tmp/b.kvc"
"$kvbook" train "$tmp/b.kvc" --recipe $recipe --layers "1-$last" -q -o "$tmp/other.kvb"
refuse "another model" 6 'META.s "model" differs' "$kvbook" merge "$tmp/first.kvb" "$tmp/other.kvb" $o
"$kvbook" capture --model "$tmp/tiny.gguf" --text "$tmp/more.txt" --ctx 128 --chunks 24 -q -o "$tmp/b.kvc"
"$kvbook" train "$tmp/b.kvc" --recipe $recipe --layers "1-$last" -q -o "$tmp/other.kvb"
refuse "another text" 6 'META.s "text" differs' "$kvbook" merge "$tmp/first.kvb" "$tmp/other.kvb" $o
refuse "a damaged part" 3 . "$kvbook" merge "$tmp/first.kvb" tests/golden-errors/section-damaged.kvb $o
refuse "no books" 2 'expected the parts' "$kvbook" merge $o
cp "$tmp/first.kvb" "$tmp/kept.kvb"
expect "a part is no output" 2 . "$kvbook" merge "$tmp/first.kvb" "$tmp/rest.kvb" -o "$tmp/first.kvb"
same "a part is left alone" "$tmp/kept.kvb" "$tmp/first.kvb"
for bad in 1-0 x 0- -1 0-x 99999; do
    refuse "--layers $bad" 2 'expected A-B' "$kvbook" train "$tmp/a.kvc" --recipe $recipe "--layers=$bad" $o
done
refuse "layers that there are not" 2 "the capture has 0 to $last" "$kvbook" train "$tmp/a.kvc" --recipe $recipe --layers "0-$layers" $o
done_testing
