#!/bin/sh
# Books as safetensors and NPZ and back: the same bytes, arrays that an independent reader understands, and what is refused.
. "$(dirname "$0")/lib.sh"

tiny_model "$tmp/tiny.gguf" 1
words "$tmp/train.txt" 120 1
input="--model $tmp/tiny.gguf --text $tmp/train.txt --ctx 128 --chunks 2"
"$kvbook" calibrate $input --recipe best --bits 2 -q -o "$tmp/best.kvb" 2>"$err"
"$kvbook" calibrate $input --recipe kvquant --bits 2 -q -o "$tmp/kvquant.kvb" 2>"$err"
"$kvbook" calibrate $input --recipe skvq --bits 2 -q -o "$tmp/skvq.kvb" 2>"$err"
"$kvbook" calibrate $input --recipe antkv --k 4x16 --v 2x16 -q -o "$tmp/antkv.kvb" 2>"$err"
for book in "$tmp"/*.kvb tests/golden/*.kvb; do
    name=$(basename "$book")
    expect "export $name" 0 wrote "$kvbook" export "$book" -o "$work/x.safetensors"
    rm -f "$work/y.kvb"
    expect "import $name" 0 wrote "$kvbook" import "$work/x.safetensors" -o "$work/y.kvb"
    same "$name: the same bytes" "$book" "$work/y.kvb"
    expect "export $name as NPZ" 0 wrote "$kvbook" export "$book" -o "$work/x.npz"
    rm -f "$work/y.kvb"
    expect "import $name from NPZ" 0 wrote "$kvbook" import "$work/x.npz" -o "$work/y.kvb"
    same "$name through NPZ: the same bytes" "$book" "$work/y.kvb"
    expect "export $name as GGUF" 0 wrote "$kvbook" export "$book" -o "$work/x.gguf"
    rm -f "$work/y.kvb"
    expect "import $name from GGUF" 0 wrote "$kvbook" import "$work/x.gguf" -o "$work/y.kvb"
    same "$name through GGUF: the same bytes" "$book" "$work/y.kvb"
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
refuse "a form that is not written" 2 'ends in .safetensors, .npz or .gguf' "$kvbook" export "$tmp/antkv.kvb" -o "$work/z.bin"
refuse "two files" 2 'expected one file' "$kvbook" export "$tmp/antkv.kvb" "$tmp/best.kvb" -o "$work/z.safetensors"

# GGUF: a reader of nothing but the standard library, damage, and a model in its place.
"$kvbook" export "$tmp/antkv.kvb" -q -o "$work/x.gguf"
cat >"$tmp/gguf.py" <<'P'
"""gguf.py FILE: tensors and strings of a GGUF file, as its specification has it."""
import json, struct, sys
raw = open(sys.argv[1], "rb").read()
at = 0
def take(form):
    global at
    value = struct.unpack_from("<" + form, raw, at)[0]
    at += struct.calcsize(form)
    return value
def text():
    global at
    size = take("Q")
    at += size
    return raw[at - size:at].decode()
assert raw[:4] == b"GGUF"
at = 4
assert take("I") == 3
tensors, strings = take("Q"), take("Q")
meta, info = {}, {}
for _ in range(strings):
    key = text()
    assert take("I") == 8
    meta[key] = text()
for _ in range(tensors):
    name = text()
    shape = [take("Q") for _ in range(take("I"))]
    info[name] = (shape, take("I"), take("Q"))
start = -(-at // 32) * 32
shape, dtype, offset = info["layers.0.heads.0.key.table"]
assert dtype == 1 and shape[:3] == [4, 16, 1] and offset % 32 == 0, shape
numbers = struct.unpack_from("<%de" % (64 * shape[3]), raw, start + offset)
assert len(set(numbers)) > 8 and all(x == x for x in numbers)
assert info["book.rest"][1] == 24 and json.loads(meta["kvbook.meta"])["recipe"]["name"] == "antkv"
P
python3 "$tmp/gguf.py" "$work/x.gguf" 2>"$err" && ok "what Python reads of GGUF" || fail "what Python reads of GGUF" "$(cat "$err")"
flip() { # flip FROM TO: in the GGUF file, of equal length
    python3 -c 'import sys; d = open(sys.argv[1], "rb").read(); a, b = sys.argv[3].encode(), sys.argv[4].encode(); assert a in d and len(a) == len(b)
open(sys.argv[2], "wb").write(d.replace(a, b))' "$work/x.gguf" "$tmp/bad.gguf" "$1" "$2"
}
flip kvbook.exchange kvbook.exchangf
refuse "GGUF without an export" 3 'but no exported book' "$kvbook" import "$tmp/bad.gguf" -o "$work/z.kvb"
flip kvbook.places kvbook.placez
refuse "GGUF without places" 3 'kvbook.places is missing' "$kvbook" import "$tmp/bad.gguf" -o "$work/z.kvb"
flip kvbook.id kvbook.ie
refuse "GGUF without an identity" 3 'is not the identity' "$kvbook" import "$tmp/bad.gguf" -o "$work/z.kvb"
flip book.rest book.resu
refuse "GGUF without the rest" 3 'book.rest is missing' "$kvbook" import "$tmp/bad.gguf" -o "$work/z.kvb"
head -c 4000 "$work/x.gguf" >"$tmp/bad.gguf"
refuse "GGUF cut short" 3 'bad.gguf' "$kvbook" import "$tmp/bad.gguf" -o "$work/z.kvb"
refuse "a model in place of an export" 3 'but no exported book' "$kvbook" import "$tmp/tiny.gguf" -o "$work/z.kvb"
rm -f "$work"/x.gguf

"$kvbook" export "$tmp/antkv.kvb" -q -o "$work/x.npz"
cat >"$tmp/npz.py" <<'P'
"""npz.py IN OUT EDIT: an NPZ file written anew from edited members, by nothing but the standard library."""
import json, struct, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as z:
    assert z.testzip() is None
    members = {i.filename: z.read(i) for i in z.infolist()}
def data(name):
    raw = members[name + ".npy"]
    assert raw[:8] == b"\x93NUMPY\x01\x00" and (10 + struct.unpack("<H", raw[8:10])[0]) % 64 == 0
    return raw[10 + struct.unpack("<H", raw[8:10])[0]:]
def head(name):
    return eval(members[name + ".npy"][10:].split(b"\n")[0])
def poke(raw, at, form, value):
    return raw[:at] + struct.pack(form, value) + raw[at + struct.calcsize(form):]
table, method, change = "layers.0.heads.0.key.table", zipfile.ZIP_STORED, lambda raw: raw
exec(sys.argv[3])
with zipfile.ZipFile(sys.argv[2], "w", method) as z:
    for name in members:
        z.writestr(name, members[name])
raw = open(sys.argv[2], "rb").read()
open(sys.argv[2], "wb").write(change(raw))
P
python3 "$tmp/npz.py" "$work/x.npz" "$tmp/again.npz" '
meta, shape = json.loads(data("__metadata__")), head(table)["shape"]
assert head(table)["descr"] == "<f2" and shape[1:] == (1, 16, 4), head(table)
numbers = struct.unpack("<%de" % (len(data(table)) // 2), data(table))
assert len(numbers) == shape[0] * 64 and len(set(numbers)) > 8
assert json.loads(meta["kvbook.meta"])["recipe"]["name"] == "antkv"
assert sum(len(data(n[:-4])) for n in members) - len(data("__metadata__")) == int(meta["kvbook.size"])' 2>"$err" &&
    ok "what Python reads of NPZ" || fail "what Python reads of NPZ" "$(cat "$err")"
expect "import what Python wrote" 0 wrote "$kvbook" import "$tmp/again.npz" -o "$work/y.kvb"
same "what Python wrote: the same bytes" "$tmp/antkv.kvb" "$work/y.kvb"
python_with numpy
if [ -n "$python" ]; then
    "$python" -c 'import numpy, sys; numpy.savez(sys.argv[2], **numpy.load(sys.argv[1]))' "$work/x.npz" "$tmp/numpy.npz"
    expect "import what numpy wrote" 0 wrote "$kvbook" import "$tmp/numpy.npz" -o "$work/y.kvb"
    same "what numpy wrote: the same bytes" "$tmp/antkv.kvb" "$work/y.kvb"
    "$python" -c 'import numpy, sys; numpy.savez_compressed(sys.argv[2], **numpy.load(sys.argv[1]))' "$work/x.npz" "$tmp/numpy.npz"
    refuse "what numpy compressed" 3 'savez_compressed' "$kvbook" import "$tmp/numpy.npz" -o "$work/z.kvb"
else
    skip "import what numpy wrote" "numpy is missing: pip install numpy"
fi

npz() { # npz NAME PATTERN EDIT
    python3 "$tmp/npz.py" "$work/x.npz" "$tmp/bad.npz" "$3"
    refuse "NPZ: $1" 3 "$2" "$kvbook" import "$tmp/bad.npz" -o "$work/z.kvb"
}
npz "compressed" 'savez_compressed' 'method = zipfile.ZIP_DEFLATED'
npz "a number changed" 'were arrays changed' 'members[table + ".npy"] = members[table + ".npy"][:-1] + b"\1"'
npz "no metadata" 'has no array __metadata__' 'del members["__metadata__.npy"]'
npz "metadata that is no JSON" 'bad.npz' 'members["__metadata__.npy"] = members["__metadata__.npy"][:-1]'
npz "no rest" 'book.rest is missing' 'del members["book.rest.npy"]'
npz "an array missing" 'a place for each array' 'del members[table + ".npy"]'
npz "an array renamed" 'has no array, or no place' 'members["x.npy"] = members.pop(table + ".npy")'
npz "the metadata as an array of the book" 'has no array, or no place' 'm = json.loads(data("__metadata__")); m["kvbook.places"] = m["kvbook.places"].replace(table, "__metadata__"); raw = members["__metadata__.npy"]; members["__metadata__.npy"] = raw[:len(raw) - len(data("__metadata__"))] + json.dumps(m).encode()'
npz "a member that is no array" 'in numpy.s form' 'members["x.npy"] = b"hello"'
npz "an array longer in its header" 'in numpy.s form' 'r = members[table + ".npy"]; members[table + ".npy"] = poke(r, 8, "<H", 65535)'
npz "a version 4 array" 'in numpy.s form' 'r = members[table + ".npy"]; members[table + ".npy"] = poke(r, 6, "<B", 4)'
npz "an array in Fortran order" 'ascontiguousarray' 'members[table + ".npy"] = members[table + ".npy"].replace(b"False", b"True ")'
npz "a long name" 'at most 63 bytes' 'members["x" * 64 + ".npy"] = members[table + ".npy"]'
npz "a name without .npy" 'at most 63 bytes' 'members["table"] = members[table + ".npy"]'
npz "two of one name" 'the same name' 'members["book.resu.npy"] = members["book.rest.npy"]; change = lambda raw: raw.replace(b"book.resu", b"book.rest")'
npz "a checksum that does not match" 'its checksum' 'i = data(table)[:32]; change = lambda raw: raw.replace(i, bytes(32))'
npz "cut short" 'was it cut short' 'change = lambda raw: raw[:-1]'
npz "four bytes" 'was it cut short' 'change = lambda raw: raw[:4]'
npz "a comment" 'was it cut short' 'change = lambda raw: raw[:-2] + b"\1\0x"'
npz "a directory elsewhere" 'does not lie where' 'change = lambda raw: poke(raw, len(raw) - 6, "<I", 5)'
npz "a member too many" 'does not lie where|is damaged' 'change = lambda raw: poke(poke(raw, len(raw) - 12, "<H", len(members) + 1), len(raw) - 14, "<H", len(members) + 1)'
npz "a member too few" 'is damaged' 'change = lambda raw: poke(poke(raw, len(raw) - 12, "<H", len(members) - 1), len(raw) - 14, "<H", len(members) - 1)'
npz "4 GiB and more" 'over 4 GiB' 'change = lambda raw: poke(poke(raw, len(raw) - 12, "<H", 65535), len(raw) - 14, "<H", 65535)'
npz "a member outside" 'lies outside' 'change = lambda raw: poke(raw, raw.index(b"PK\1\2") + 42, "<I", len(raw) - 8)'
npz "a member over another" 'lies over another' 'for i in range(3): members["y%d.npy" % i] = members["book.rest.npy"]
change = lambda raw: raw[:raw.index(b"PK\3\4", raw.index(b"y0.npy"))] and overlap(raw)
def overlap(raw):
    at = [i for i in range(len(raw)) if raw[i:i + 4] == b"PK\1\2"]
    offset = [struct.unpack("<I", raw[i + 42:i + 46])[0] for i in at]
    begin, cut = at[0], offset[-2]
    move = begin - cut
    out = raw[:cut] + raw[begin:]
    for i in at[-2:]:
        out = poke(out, i - move + 42, "<I", offset[-3])
    return poke(out, len(out) - 6, "<I", cut)'
refuse "NPZ onto itself" 2 . "$kvbook" import "$work/x.npz" -o "$work/x.npz"
done_testing
