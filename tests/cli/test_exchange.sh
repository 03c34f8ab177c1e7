#!/bin/sh
# Books as safetensors and back: the same bytes, arrays that an independent reader understands, and what is refused.
. "$(dirname "$0")/lib.sh"

tiny_model "$tmp/tiny.gguf" 1
words "$tmp/train.txt" 120 1
input="--model $tmp/tiny.gguf --text $tmp/train.txt --ctx 128 --chunks 2"
"$kvbook" calibrate $input --recipe best --bits 2 -q -o "$tmp/best.kvb" 2>"$err"
"$kvbook" calibrate $input --recipe kvquant --bits 2 -q -o "$tmp/kvquant.kvb" 2>"$err"
"$kvbook" calibrate $input --recipe antkv --k 4x16 --v 2x16 -q -o "$tmp/antkv.kvb" 2>"$err"
for book in "$tmp"/*.kvb tests/golden/*.kvb; do
    name=$(basename "$book")
    expect "export $name" 0 wrote "$kvbook" export "$book" -o "$work/x.safetensors"
    expect "import $name" 0 wrote "$kvbook" import "$work/x.safetensors" -o "$work/y.kvb"
    same "$name: the same bytes" "$book" "$work/y.kvb"
done

"$kvbook" export "$tmp/antkv.kvb" -q -o "$work/x.safetensors"
"$kvbook" info --json "$tmp/antkv.kvb" >"$tmp/info.json"
cat >"$tmp/st.py" <<'P'
"""st.py IN OUT EDIT: a safetensors file with its header edited, by nothing but the standard library."""
import json, struct, sys
raw = open(sys.argv[1], "rb").read()
n = struct.unpack("<Q", raw[:8])[0]
head, data = json.loads(raw[8:8 + n]), bytearray(raw[8 + n:])
meta = head["__metadata__"]
def of(name):
    begin, end = head[name]["data_offsets"]
    return begin, end
exec(sys.argv[3])
text = json.dumps(head).encode()
text += b" " * (-len(text) % 8)
open(sys.argv[2], "wb").write(struct.pack("<Q", len(text)) + text + bytes(data))
P
python3 "$tmp/st.py" "$work/x.safetensors" /dev/null '
table = head["layers.0.heads.0.key.table"]
assert table["dtype"] == "F16" and table["shape"][1:] == [1, 16, 4], table
begin, end = of("layers.0.heads.0.key.table")
numbers = struct.unpack("<%de" % ((end - begin) // 2), data[begin:end])
assert len(set(numbers)) > 8 and all(x == x for x in numbers)
assert json.loads(meta["kvbook.meta"])["recipe"]["name"] == "antkv"
assert sum(of(k)[1] - of(k)[0] for k in head if k != "__metadata__") == int(meta["kvbook.size"])
assert meta["kvbook.id"] == json.load(open("'"$tmp"'/info.json"))["id"]' 2>"$err" &&
    ok "what Python reads of it" || fail "what Python reads of it" "$(cat "$err")"

change() { # change NAME CODE PATTERN EDIT
    python3 "$tmp/st.py" "$work/x.safetensors" "$tmp/bad.safetensors" "$4"
    refuse "$1" "$2" "$3" "$kvbook" import "$tmp/bad.safetensors" -o "$work/z.kvb"
}
table='"layers.0.heads.0.key.table"'
change "an array that was changed" 3 'were arrays changed after the export' "data[of($table)[0]] ^= 1"
change "no exported book" 3 'but no exported book' 'del meta["kvbook.exchange"]'
change "a newer export" 3 'by a newer kvbook' 'meta["kvbook.exchange"] = "2"'
change "no size" 3 'kvbook.size: expected' 'del meta["kvbook.size"]'
change "a size of nothing" 3 'kvbook.size: expected' 'meta["kvbook.size"] = "0"'
change "a size that is no number" 3 'kvbook.size: expected' 'meta["kvbook.size"] = "12x"'
change "a size of 2^63" 3 'kvbook.size: expected' 'meta["kvbook.size"] = "9223372036854775808"'
change "no places" 3 'kvbook.places is missing' 'del meta["kvbook.places"]'
change "places that are no JSON" 3 'bad.safetensors' 'meta["kvbook.places"] = "{"'
change "places that are a list" 3 'expected an object' 'meta["kvbook.places"] = "[]"'
change "an array without a place" 3 'a place for each array' "p = json.loads(meta['kvbook.places']); del p[$table]; meta['kvbook.places'] = json.dumps(p)"
change "a place without an array" 3 'has no array, or no place' "p = json.loads(meta['kvbook.places']); p['x'] = p.pop($table); meta['kvbook.places'] = json.dumps(p)"
change "a place outside" 3 'lies outside the book' "p = json.loads(meta['kvbook.places']); p[$table] = int(meta['kvbook.size']); meta['kvbook.places'] = json.dumps(p)"
change "a place over another" 3 'lies over another' "p = json.loads(meta['kvbook.places']); p[$table] = p['layers.0.heads.1.key.table']; meta['kvbook.places'] = json.dumps(p)"
change "no rest" 3 'book.rest is missing' 'head["rest"] = head.pop("book.rest")'
change "a larger book" 3 'book.rest: expected' 'meta["kvbook.size"] = str(int(meta["kvbook.size"]) + 64)'
change "another identity" 3 'is not the identity' 'meta["kvbook.id"] = "0" * 64'
change "cut short" 3 'bad.safetensors' 'del data[-1:]'
refuse "a book in place of arrays" 3 . "$kvbook" import "$tmp/antkv.kvb" -o "$work/z.kvb"
refuse "arrays in place of a book" 3 . "$kvbook" export "$work/x.safetensors" -o "$work/z.safetensors"
refuse "import onto itself" 2 . "$kvbook" import "$work/x.safetensors" -o "$work/x.safetensors"
refuse "two files" 2 'expected one file' "$kvbook" export "$tmp/antkv.kvb" "$tmp/best.kvb" -o "$work/z.safetensors"
done_testing
