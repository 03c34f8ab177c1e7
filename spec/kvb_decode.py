#!/usr/bin/env python3
"""Reads a .kvb file (version 1) with nothing but the Python standard library and prints it as JSON.

    kvb_decode.py [--tables] FILE...

It is written from spec/kvb-1.md alone and shares no code with kvbook, so that the two readers check each other. Exit
status: 0 if every file is valid, 3 if one is not (the reason goes to stderr), 4 if one cannot be read.
"""
import hashlib
import json
import math
import struct
import sys
import zlib

MAGIC = b"\x89KVB\r\n\x1a\n"
SHARED = 0xFFFFFFFF
ELEMENT = {0: 1, 1: 2, 2: 4}
CODECS = (0, 1)
KNOWN = ("META", "GEOM", "POLC", "ROPE", "CODE", "SCAL", "GRPS", "POOL", "FINE", "MEAN", "XFRM", "qual")
MAX_META = 1 << 20
MIN_NORMAL32 = 2.0 ** -126
MIN_NORMAL64 = sys.float_info.min
KINDS = ("key", "value")


class Refused(Exception):
    pass


def need(condition, message):
    if not condition:
        raise Refused(message)


# --- header and table ---

def read_header(data):
    need(data[:8] == MAGIC, "the magic is missing")
    need(len(data) >= 128, "shorter than a header")
    names = ("major minor header_size file_size incompatible_flags compatible_flags table_offset sections entry_size "
             "byte_order table_crc book_id").split()
    header = dict(zip(names, struct.unpack_from("<HHIQIIQIIII32s", data, 8)))
    need(header["byte_order"] == 0x01020304, "byte-order tag")
    need(header["major"] == 1, "version %d.%d" % (header["major"], header["minor"]))
    need(header["file_size"] == len(data), "file size")
    need(len(data) <= 16 << 30, "over 16 GiB")
    newer = header["minor"] > 0
    size = header["header_size"]
    need(size == 128 or (newer and 128 <= size <= 4096 and size % 8 == 0 and size <= len(data)), "header size")
    need(zlib.crc32(data[:size - 4]) == struct.unpack_from("<I", data, size - 4)[0], "header checksum")
    need(newer or not any(data[88:size - 4]), "reserved bytes of the header")
    need(header["incompatible_flags"] == 0, "incompatible flags")
    need(header["table_offset"] == size, "table offset")
    need(1 <= header["sections"] <= 1 << 20, "number of sections")
    entry = header["entry_size"]
    need(entry == 96 or (newer and 96 <= entry <= 4096 and entry % 8 == 0), "entry size")
    return header


def read_table(data, header):
    start, count, stride = header["table_offset"], header["sections"], header["entry_size"]
    table = data[start:start + count * stride]
    need(len(table) == count * stride, "the table does not fit")
    need(zlib.crc32(table) == header["table_crc"], "table checksum")
    need(hashlib.sha256(table).digest() == header["book_id"], "book_id")
    names = ("type codec dtype kind layer head first_group groups d K dims shape0 shape1 shape2 shape3 offset "
             "stored_size raw_size stored_crc raw_crc").split()
    entries = []
    for i in range(count):
        row = table[i * stride:(i + 1) * stride]
        e = dict(zip(names, struct.unpack_from("<4sHHIIIIIIIIIIIIQQQII", row)))
        need(header["minor"] > 0 or not any(row[88:96]), "reserved bytes of entry %d" % i)
        e["shape"] = [e.pop("shape%d" % j) for j in range(4)]
        e["index"] = i
        check_entry(e, header["minor"] > 0)
        entries.append(e)
    return entries


def check_entry(e, newer):
    raw = e["type"]
    name = raw.decode("latin-1")
    need(raw[:1].isalpha() and raw.isalnum() and raw.isascii(), "type of entry %d" % e["index"])
    e["type"] = name
    known = name in KNOWN
    need(known or name[0].islower(), "unknown critical section %s" % name)
    need(e["codec"] in CODECS or (newer and not known), "codec of %s" % name)
    need(e["dtype"] in ELEMENT or (newer and not known), "dtype of %s" % name)
    if e["codec"] == 0:
        need(e["stored_size"] == e["raw_size"] and e["stored_crc"] == e["raw_crc"], "raw section %s" % name)


def check_places(data, header, entries):
    end = header["table_offset"] + header["sections"] * header["entry_size"]
    for e in entries:
        need(e["offset"] == (end + 255) // 256 * 256, "offset of section %d" % e["index"])
        need(e["stored_size"] > 0 and e["offset"] + e["stored_size"] <= len(data), "size of section %d" % e["index"])
        need(not any(data[end:e["offset"]]), "padding before section %d" % e["index"])
        end = e["offset"] + e["stored_size"]
        need(zlib.crc32(data[e["offset"]:end]) == e["stored_crc"], "checksum of section %d" % e["index"])
    need(end == len(data), "bytes after the last section")


# --- sections ---

def content(data, e):
    stored = data[e["offset"]:e["offset"] + e["stored_size"]]
    if e["codec"] == 0:
        return stored
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(stored, e["raw_size"] + 1)
    except zlib.error as error:
        raise Refused("zlib stream of %s: %s" % (e["type"], error))
    need(len(raw) == e["raw_size"] and stream.eof and not stream.unused_data, "zlib stream of %s" % e["type"])
    need(zlib.crc32(raw) == e["raw_crc"], "raw checksum of %s" % e["type"])
    return raw


def expect(e, dtype, shape, kind=SHARED, layer=SHARED, head=SHARED, groups=0, d=0, K=0, may_compress=False):
    found = (e["dtype"], e["kind"], e["layer"], e["head"], e["first_group"], e["groups"], e["d"], e["K"], e["dims"],
             e["shape"])
    wanted = (dtype, kind, layer, head, 0, groups, d, K, len(shape), list(shape) + [0] * (4 - len(shape)))
    need(found == wanted, "table entry of %s is %s, expected %s" % (e["type"], found, wanted))
    need(e["raw_size"] == ELEMENT[dtype] * math.prod(shape), "size of %s" % e["type"])
    need(e["codec"] == 0 or may_compress, "%s must be stored raw" % e["type"])


def single(data, entries, name, may_compress=False):
    found = [e for e in entries if e["type"] == name]
    need(len(found) == 1, "%d sections %s, expected one" % (len(found), name))
    need(found[0]["raw_size"] <= max(MAX_META, 1 << 26), "size of %s" % name)
    expect(found[0], 0, [found[0]["raw_size"]], may_compress=may_compress)
    return found[0], content(data, found[0])


def unique_members(pairs):
    need(len({key for key, _ in pairs}) == len(pairs), "META has a key twice")
    return dict(pairs)


def finite_number(text):
    value = float(text)
    need(math.isfinite(value), "META holds a number that is not finite")
    need(len(text) <= 512, "META holds a number of over 512 characters")
    return value


def whole_number(text):
    finite_number(text)
    return int(text)


def check_strings(value, depth=1):
    need(depth <= 16 or not isinstance(value, (dict, list)), "META is nested deeper than 16")
    if isinstance(value, str):
        need("\0" not in value and not any(0xD800 <= ord(c) <= 0xDFFF for c in value), "META: a string")
    for item in (value.items() if isinstance(value, dict) else [value] if isinstance(value, list) else []):
        for part in item:
            check_strings(part, depth + 1)


def read_meta(data, entries):
    e, raw = single(data, entries, "META", may_compress=True)
    need(e["raw_size"] <= MAX_META and raw[:1] == b"{", "META")

    def refuse(word):
        raise Refused("META holds %s" % word)
    try:
        meta = json.loads(raw.decode("utf-8"), object_pairs_hook=unique_members, parse_constant=refuse,
                          parse_float=finite_number, parse_int=whole_number)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise Refused("META: %s" % error)
    check_strings(meta)
    return meta


def positive(value, smallest):
    return math.isfinite(value) and value >= smallest


def check_layer(i, l):
    need(1 <= l["heads"] <= 1024, "layer %d: heads" % i)
    need(1 <= l["kv_heads"] <= l["heads"] and l["heads"] % l["kv_heads"] == 0, "layer %d: KV heads" % i)
    need(1 <= l["head_dim"] <= 1024, "layer %d: head dimension" % i)
    need(l["kind"] <= 2 and (l["kind"] == 1) == (l["sliding_window"] > 0), "layer %d: kind" % i)
    need(positive(l["attention_scale"], MIN_NORMAL64), "layer %d: attention scale" % i)
    need(l["frame"] <= 2 and (l["frame"] == 2) == (l["rope_block"] > 0), "layer %d: RoPE frame" % i)
    need(l["rope_block"] <= 1 << 20, "layer %d: RoPE block" % i)
    need(l["rope_style"] <= 2, "layer %d: RoPE style" % i)
    if l["rope_style"] == 0:
        need(l["rope_dims"] == 0 and l["rope_base"] == 0, "layer %d: RoPE without a style" % i)
    else:
        need(2 <= l["rope_dims"] <= l["head_dim"] and l["rope_dims"] % 2 == 0, "layer %d: rotating channels" % i)
        need(positive(l["rope_base"], MIN_NORMAL64), "layer %d: RoPE base" % i)


def read_geometry(data, header, entries):
    _, raw = single(data, entries, "GEOM")
    need(len(raw) >= 8, "GEOM is too short")
    count, record = struct.unpack_from("<II", raw)
    newer = header["minor"] > 0
    need(1 <= count <= 1024, "number of layers")
    need(record == 64 or (newer and 64 <= record <= 4096 and record % 8 == 0), "layer records")
    need(len(raw) == 8 + count * record, "size of GEOM")
    names = ("heads kv_heads head_dim kind sliding_window frame rope_block rope_style rope_dims reserved rope_base "
             "attention_scale reserved2").split()
    layers = []
    for i in range(count):
        l = dict(zip(names, struct.unpack_from("<IIIIIIIIIIddQ", raw, 8 + i * record)))
        need(newer or (l["reserved"] == 0 and l["reserved2"] == 0), "layer %d: reserved bytes" % i)
        del l["reserved"], l["reserved2"]
        check_layer(i, l)
        l["rope_factors"] = None
        layers.append(l)
    return layers


def read_policy(data, header, entries):
    _, raw = single(data, entries, "POLC")
    newer = header["minor"] > 0
    need(len(raw) == 32 or (newer and len(raw) > 32), "size of POLC")
    fraction, score, window, sinks, exact_form, reserved = struct.unpack_from("<dIIIIQ", raw)
    need(0 <= fraction <= 1, "anchor fraction")
    need(score <= 4, "anchor score")
    need(exact_form <= 1, "exact form")
    need(newer or reserved == 0, "reserved bytes of POLC")
    return {"anchor_fraction": fraction, "score": score, "window": window, "sinks": sinks, "exact_form": exact_form}


def owner(e, layers):
    need(e["layer"] < len(layers), "%s: layer" % e["type"])
    l = layers[e["layer"]]
    need(l["kind"] != 2, "%s: the layer is unsupported" % e["type"])
    need(e["head"] < l["kv_heads"], "%s: head" % e["type"])
    need(e["kind"] < 2, "%s: kind" % e["type"])
    return (e["layer"], e["head"], e["kind"]), l["head_dim"]


def floats(raw, dtype):
    return list(struct.unpack("<%d%s" % (len(raw) // ELEMENT[dtype], "e" if dtype == 1 else "f"), raw))


def all_finite(values, name):
    need(all(math.isfinite(v) for v in values), "%s holds a value that is not finite" % name)
    return values


def read_rope(data, entries, layers):
    for e in entries:
        if e["type"] != "ROPE":
            continue
        need(e["layer"] < len(layers), "ROPE: layer")
        l = layers[e["layer"]]
        need(l["rope_style"] != 0 and l["rope_factors"] is None, "ROPE: not wanted here")
        expect(e, 2, [l["rope_dims"] // 2], layer=e["layer"])
        l["rope_factors"] = floats(content(data, e), 2)
        need(all(positive(f, MIN_NORMAL32) for f in l["rope_factors"]), "ROPE: factors")


def read_codebooks(data, entries, layers, name):
    """The sections CODE, or FINE: the same rules."""
    books = {}
    for e in entries:
        if e["type"] != name:
            continue
        key, D = owner(e, layers)
        d, K = e["d"], e["K"]
        M = e["shape"][1] if e["dims"] == 4 else 1
        need(key not in books, name + ": twice")
        need(1 <= d <= 256 and D % d == 0, name + ": d")
        need(2 <= K <= 65536 and K & (K - 1) == 0, name + ": K")
        bits = M * (K.bit_length() - 1)
        need(e["dims"] != 4 or (2 <= M <= 8 and bits <= 16), name + ": stages")
        shape = [D // d, M, K, d] if e["dims"] == 4 else [D // d, K, d]
        expect(e, 1, shape, *(e["kind"], e["layer"], e["head"]), groups=D // d, d=d, K=K)
        table = all_finite(floats(content(data, e), 1), name)
        for s in range(D // d * M):
            rows = [table[(s * K + k) * d:(s * K + k + 1) * d] for k in range(K)]
            need(any(row != rows[0] for row in rows),
                 "%s: all centroids of group %d, stage %d are equal" % (name, s // M, s % M))
        books[key] = {"layer": e["layer"], "head": e["head"], "kind": KINDS[e["kind"]], "d": d, "K": K, "S": D // d,
                      "M": M, "bits": bits, "table": table, "mean": None, "forward": None, "inverse": None, "quality": None,
                      "fine": None, "scaling": None}
    if name == "CODE":
        read_scalings(data, entries, layers, books)
    wanted = {(i, g, kind) for i, l in enumerate(layers) if l["kind"] != 2 for g in range(l["kv_heads"])
              for kind in (0, 1)}
    need(wanted and (set(books) == wanted or (name == "FINE" and not books)),
         "there is not one %s section for each head" % name)
    return books


def read_scalings(data, entries, layers, books):
    """The sections SCAL, each in place of a CODE section."""
    for e in entries:
        if e["type"] != "SCAL":
            continue
        key, D = owner(e, layers)
        need(key not in books, "SCAL: beside CODE, or twice")
        expect(e, 0, [e["raw_size"]], *(e["kind"], e["layer"], e["head"]))
        raw = content(data, e)
        need(len(raw) >= 32, "SCAL: size")
        bits, axis, form, group, clip, levels, outliers, reserved = struct.unpack_from("<IIIIfIII", raw)
        need(1 <= bits <= 8 and axis <= 1 and form <= 3 and reserved == 0, "SCAL: fields")
        need(axis == 0 and group == 1 if form == 3 else 2 <= group <= 1024 and group & (group - 1) == 0 if axis == 0 else 1 <= group and D % group == 0, "SCAL: group")
        need(positive(clip, MIN_NORMAL32) and clip <= 16, "SCAL: clip")
        need(outliers < (D if form == 3 else group if axis == 1 and form < 2 else 1), "SCAL: outliers")
        need(levels in (0, 1 << bits) and len(raw) == 32 + 2 * levels + (4 * D if form == 3 else 0), "SCAL: levels")
        numbers = all_finite(floats(raw[32:], 1), "SCAL")
        table, fixed = numbers[:levels], numbers[levels:]
        need(all(x > 0 for x in fixed[D:]), "SCAL: scales")
        need(all(a < b for a, b in zip(table, table[1:])), "SCAL: levels out of order")
        books[key] = {"layer": e["layer"], "head": e["head"], "kind": KINDS[e["kind"]], "d": 1, "K": 1 << bits, "S": D, "M": 1,
                      "bits": bits, "table": table or None, "mean": None, "forward": None, "inverse": None, "quality": None,
                      "fine": None, "scaling": {"axis": axis, "form": form, "group": group, "clip": clip, "outliers": outliers,
                                                  "offsets": fixed[:D] or None, "scales": fixed[D:] or None,
                                                  "store": 0, "order": None, "end": None, "clips": None}}
    read_groups(data, entries, layers, books)
    read_pools(data, entries, layers, books)


def read_groups(data, entries, layers, books):
    """The sections GRPS: more of what SCAL says of its groups."""
    seen = set()
    for e in entries:
        if e["type"] != "GRPS":
            continue
        key, D = owner(e, layers)
        s = books[key]["scaling"] if key in books else None
        need(s is not None and key not in seen, "GRPS: without SCAL, or twice")
        seen.add(key)
        expect(e, 0, [e["raw_size"]], *(e["kind"], e["layer"], e["head"]))
        raw = content(data, e)
        need(len(raw) >= 16, "GRPS: size")
        store, lists, clips, reserved = struct.unpack_from("<IIII", raw)
        groups = lists or (D if s["axis"] == 0 else D // s["group"])
        need(store <= 1 and reserved == 0 and (store or lists or clips), "GRPS: fields")
        need(lists <= D and clips in (0, groups), "GRPS: lists or clips")
        need(len(raw) == 16 + 4 * clips + (2 * (D + lists) if lists else 0), "GRPS: size")
        need(not (s["form"] == 3 and store) and not (clips and s["axis"] == 0), "GRPS: nothing it could be of")
        s["store"] = store
        s["clips"] = list(struct.unpack_from("<%df" % clips, raw, 16)) or None
        need(all(positive(c, MIN_NORMAL32) and c <= 16 for c in s["clips"] or []), "GRPS: clip")
        if lists:
            need(s["axis"] == 1 and s["group"] == D and s["outliers"] == 0, "GRPS: lists beside other groups or outliers")
            places = struct.unpack_from("<%dH" % (D + lists), raw, 16 + 4 * clips)
            s["order"], s["end"] = list(places[:D]), list(places[D:])
            need(sorted(s["order"]) == list(range(D)), "GRPS: order")
            need(all(a < b for a, b in zip([0] + s["end"], s["end"])) and s["end"][-1] == D, "GRPS: ends")


def read_pools(data, entries, layers, books):
    """The sections POOL: tokens of keys with SCAL that a cache holds exactly."""
    seen = set()
    for e in entries:
        if e["type"] != "POOL":
            continue
        key = (e["layer"], e["head"], e["kind"])
        s = books[key]["scaling"] if key in books else None
        need(s is not None and e["kind"] == 0 and key not in seen, "POOL: without SCAL, of values, or twice")
        seen.add(key)
        expect(e, 0, [16], *(e["kind"], e["layer"], e["head"]))
        s["pool"], s["spill"], reserved = struct.unpack("<IIQ", content(data, e))
        need(reserved == 0 and s["axis"] == 0 and s["form"] != 3, "POOL: fields")
        need(1 <= s["pool"] < s["group"] and 1 <= s["spill"] <= 4096, "POOL: tokens")


def read_fine(data, entries, layers, books, policy):
    """The second codebook over the same y: it has a shape and a table, and shares the rest."""
    fine = read_codebooks(data, entries, layers, "FINE")
    need(fine or policy["exact_form"] == 0, "POLC wants fine codes, but there are no FINE sections")
    scaled = [b["scaling"] for b in books.values() if b["scaling"]]
    need(not (fine and scaled), "FINE beside SCAL")
    need(policy["anchor_fraction"] == 0 or all(s["axis"] == 1 or s["group"] == 1 for s in scaled), "POLC: anchors where tokens share scales")
    for key in fine:
        books[key]["fine"] = {name: fine[key][name] for name in ("d", "K", "S", "table")}


def check_inverse(forward, inverse, D):
    for i in range(D):
        for j in range(D):
            dot = math.fsum(inverse[i * D + k] * forward[k * D + j] for k in range(D))
            need(abs(dot - (i == j)) <= 1e-2, "XFRM: the matrices are not inverses of each other")


def read_means_and_transforms(data, entries, layers, books):
    for e in entries:
        if e["type"] not in ("MEAN", "XFRM"):
            continue
        key, D = owner(e, layers)
        book = books[key]
        mean = e["type"] == "MEAN"
        need(book["mean" if mean else "forward"] is None, "%s: twice" % e["type"])
        expect(e, 2, [D] if mean else [2, D, D], e["kind"], e["layer"], e["head"])
        values = all_finite(floats(content(data, e), 2), e["type"])
        if mean:
            book["mean"] = values
        else:
            book["forward"], book["inverse"] = values[:D * D], values[D * D:]
            check_inverse(book["forward"], book["inverse"], D)


def read_quality(data, entries, layers, books):
    for e in entries:
        if e["type"] != "qual":
            continue
        key, _ = owner(e, layers)
        need(books[key]["quality"] is None, "qual: twice")
        need(books[key]["scaling"] is None, "qual: of a scalar quantiser")
        expect(e, 2, [books[key]["S"], 4], e["kind"], e["layer"], e["head"], may_compress=True)
        values = floats(content(data, e), 2)
        need(all(math.isnan(v) or 0 <= v < math.inf for v in values), "qual: figures")
        books[key]["quality"] = [None if math.isnan(v) else v for v in values]


def decode(data, tables):
    header = read_header(data)
    entries = read_table(data, header)
    check_places(data, header, entries)
    meta = read_meta(data, entries)
    layers = read_geometry(data, header, entries)
    policy = read_policy(data, header, entries)
    need(any(l["kind"] != 2 for l in layers), "no layer has codebooks")
    read_rope(data, entries, layers)
    books = read_codebooks(data, entries, layers, "CODE")
    read_fine(data, entries, layers, books, policy)
    read_means_and_transforms(data, entries, layers, books)
    read_quality(data, entries, layers, books)
    header["book_id"] = header["book_id"].hex()
    for e in entries:
        for field in ("kind", "layer", "head"):
            e[field] = None if e[field] == SHARED else e[field]
    result = {"schema": 1, "header": header, "sections": entries, "meta": meta, "policy": policy, "layers": layers,
              "checksums": "verified"}
    if tables:
        result["codebooks"] = [books[key] for key in sorted(books)]
    return result


def main(arguments):
    tables = "--tables" in arguments
    files = [a for a in arguments if a != "--tables"]
    if not files or any(a.startswith("--") for a in files):
        print(__doc__, file=sys.stderr)
        return 2
    status = 0
    for path in files:
        try:
            with open(path, "rb") as f:
                data = f.read()
            result = decode(data, tables)
            print(json.dumps(dict([("file", path)] + list(result.items())), ensure_ascii=False, allow_nan=False))
        except Refused as error:
            print("%s: %s" % (path, error), file=sys.stderr)
            status = 3
        except OSError as error:
            print("%s: %s" % (path, error.strerror), file=sys.stderr)
            status = 4
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
