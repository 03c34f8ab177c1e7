#!/bin/sh
# Two books side by side: the same, the same centroids in another order, other seeds, shapes and models.
. "$(dirname "$0")/lib.sh"

tiny_model "$tmp/tiny.gguf" 1
tiny_model "$tmp/other.gguf" 2
words "$tmp/train.txt" 120 1
input="--model $tmp/tiny.gguf --text $tmp/train.txt --ctx 128 --chunks 8"
make() { name=$1; shift; "$kvbook" calibrate "$@" -q -o "$work/$name.kvb" 2>"$err"; }
make a $input --recipe antkv --k 4x16 --v 4x16
make seed $input --recipe antkv --k 4x16 --v 4x16 --seed 2
make shape $input --recipe antkv --k 8x16 --v 4x16
make moved $input --recipe best --k 4x16 --v 4x16
make scaled $input --recipe kivi --bits 2
make model --model "$tmp/other.gguf" --text "$tmp/train.txt" --ctx 128 --chunks 8 --recipe antkv --k 4x16 --v 4x16
cp "$work/a.kvb" "$work/copy.kvb"
python3 tests/cli/rewrite_centroids.py "$work/a.kvb" "$work/order.kvb" reversed

expect "a copy" 0 '^the same$' "$kvbook" diff "$work/a.kvb" "$work/copy.kvb"
differ() { # differ NAME PATTERN BOOK
    "$kvbook" diff "$work/a.kvb" "$work/$3.kvb" >"$out" 2>"$err"
    code=$?
    if [ $code -eq 1 ] && grep -qE "$2" "$out" && grep -q 'is another book than' "$err"; then ok "$1"; else fail "$1" "exit $code: $(cat "$out" "$err")"; fi
}
differ "centroids in another order" '^key dist\. +0 of the centroids' order
differ "another seed" '^key dist\. +0\.[0-9]+ of the centroids' seed
differ "another shape" '^key dist\. +not compared; 4 heads have other shapes' shape
differ "another recipe" '^recipe +antkv  \|  best' moved
differ "another transform" 'in 4 heads means or transforms differ' moved
differ "numbers with scales" '^keys +4x16  \|  2-bit numbers' scaled
differ "another model" '^weights +[0-9a-f]+  \|  [0-9a-f]+' model
"$kvbook" diff --json "$work/a.kvb" "$work/seed.kvb" >"$tmp/d.json" 2>"$err"
json "--json" "$tmp/d.json" 'd["schema"] == 1 and not d["same"] and d["same_geometry"] and 0 < d["keys"]["distance"] <= d["keys"]["worst"]
    and len(d["layers"]) == 2 and abs(sum(l["keys"]["distance"] for l in d["layers"]) / 2 - d["keys"]["distance"]) < 1e-9'
refuse "one book" 2 'found 1 books, expected two' "$kvbook" diff "$work/a.kvb"
head -c 1000 "$work/a.kvb" >"$work/cut.kvb"
refuse "a damaged book" 3 'cut.kvb' "$kvbook" diff "$work/a.kvb" "$work/cut.kvb"
done_testing
