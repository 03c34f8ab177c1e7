#!/bin/sh
# verify of captures: good ones pass, and each kind of bad number is named.
. "$(dirname "$0")/lib.sh"

tiny_model "$tmp/tiny.gguf" 1
words "$tmp/train.txt" 60 1
"$kvbook" capture --model "$tmp/tiny.gguf" --text "$tmp/train.txt" --ctx 64 --chunks 2 --fisher --queries -q -o "$tmp/good.kvc" 2>"$err"
expect "a capture verifies" 0 ' 0 failed' "$kvbook" verify "$tmp/good.kvc"
"$kvbook" verify --json "$tmp/good.kvc" >"$tmp/good.json"
json "as JSON" "$tmp/good.json" 'd["ok"] and d["failed"] == [] and d["checks"] > 10 and d["rows"] == 128'
refuse "--model with a capture" 2 'means nothing for a capture' "$kvbook" verify "$tmp/good.kvc" --model "$tmp/tiny.gguf"
refuse "--book with a capture" 2 'means nothing for a capture' "$kvbook" verify "$tmp/good.kvc" --book x.kvb
head -c 3000 "$tmp/good.kvc" >"$tmp/cut.kvc"
refuse "cut short" 3 'cut.kvc' "$kvbook" verify "$tmp/cut.kvc"
cat >"$tmp/poke.py" <<'P'
"""poke.py IN OUT NAME HEX ALL: writes the bytes over the start of an array, or all of it, by nothing but the standard library."""
import json, struct, sys
raw = bytearray(open(sys.argv[1], "rb").read())
n = struct.unpack("<Q", raw[:8])[0]
head = json.loads(raw[8:8 + n])
name = next(k for k in head if k.endswith(sys.argv[3]))
begin, end = head[name]["data_offsets"]
what = bytes.fromhex(sys.argv[4])
what *= (end - begin) // len(what) if sys.argv[5] == "all" else 1
raw[8 + n + begin:8 + n + begin + len(what)] = what
open(sys.argv[2], "wb").write(raw)
P
bad() { # bad NAME ARRAY HEX ALL PATTERN
    python3 "$tmp/poke.py" "$tmp/good.kvc" "$tmp/bad.kvc" "$2" "$3" "$4" || fail "$1" "no array $2"
    expect "$1" 1 "$5" "$kvbook" verify "$tmp/bad.kvc"
}
bad "a NaN among keys" layers.1.keys 007e one 'layer 1, keys: number 0 of row 0'
bad "an infinite value" layers.0.values 007c one 'layer 0, values: number 0 of row 0'
bad "a negative weight" layers.0.weight_k 000080bf one 'layer 0, weights of keys: .* from 0 on'
bad "a weight that is no number" layers.1.weight_v 0000c07f one 'layer 1, weights of values: .* from 0 on'
bad "weights that are all 0" layers.0.weight_v 00000000 all 'expected a head with a weight above 0'
bad "an infinite moment" layers.0.moment_post 0000807f one 'layer 0, moments of the queries'
bad "a NaN among gradients" layers.1.gradient_k 007e one 'layer 1, gradients of keys'
bad "an infinite query" layers.1.queries 00fc one 'layer 1, queries: number 0 of row 0'
"$kvbook" verify --json "$tmp/bad.kvc" >"$tmp/bad.json" 2>"$err"
json "failures as JSON" "$tmp/bad.json" 'not d["ok"] and d["failures"] == 1 and len(d["failed"]) == 1'
done_testing
