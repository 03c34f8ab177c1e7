#!/usr/bin/env python3
"""Reads a .kvp file (version 1) with nothing but the Python standard library and prints it as JSON.

    kvp_decode.py [--rows] FILE...

It is written from spec/kvp-1.md and spec/kvb-1.md; the shell that both formats share is read by kvb_decode.py. Exit status: 0
if every file is valid, 3 if one is not (the reason goes to stderr), 4 if one cannot be read.
"""
import json
import math
import os
import struct
import sys
import zlib

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import kvb_decode as shell  # noqa: E402
from kvb_decode import Refused, SHARED, need  # noqa: E402

MAGIC = b"\x89KVP\r\n\x1a\n"
KNOWN = ("META", "CACH", "GEOM", "PROM", "KEPT", "CODE", "ANCH", "GAIN", "toks", "last")
CODECS = {"META": (0, 1), "toks": (0, 1), "KEPT": (0, 1, 2), "CODE": (0, 1, 2), "ANCH": (0, 1, 2), "GAIN": (0, 1, 2)}


def read_origin(data, header, entries):
    _, raw = shell.single(data, entries, "CACH")
    newer = header["minor"] > 0
    need(len(raw) == 80 or (newer and len(raw) > 80), "size of CACH")
    book_id = raw[:32]
    fraction, score, window, sinks, exact_form, reserved = struct.unpack_from("<dIIIIQ", raw, 32)
    seed, prompts, reserved2 = struct.unpack_from("<QII", raw, 64)
    need(0 <= fraction <= 1 and score <= 4 and exact_form <= 1, "policy")
    need(1 <= prompts <= 4096, "number of prompts")
    need(newer or (reserved == 0 and reserved2 == 0), "reserved bytes of CACH")
    policy = {"anchor_fraction": fraction, "score": score, "window": window, "sinks": sinks, "exact_form": exact_form}
    return {"book_id": book_id.hex() if any(book_id) else None, "policy": policy, "seed": seed, "prompts": prompts}


def read_geometry(data, entries, origin):
    _, raw = shell.single(data, entries, "GEOM")
    need(len(raw) >= 8, "GEOM is too short")
    count, reserved = struct.unpack_from("<II", raw)
    need(1 <= count <= 1024 and reserved == 0, "number of layers")
    at, layers = 8, []
    for i in range(count):
        need(len(raw) >= at + 16, "GEOM ends before layer %d" % i)
        G, D, coded, reserved = struct.unpack_from("<IIII", raw, at)
        at += 16
        need(1 <= G <= 1024 and 1 <= D <= 1024, "layer %d: heads" % i)
        need(coded <= 1 and reserved == 0 and (not coded or origin["book_id"]), "layer %d: coded" % i)
        need(len(raw) >= at + 16 * G, "GEOM ends within layer %d" % i)
        rows = [struct.unpack_from("<IIII", raw, at + 16 * g) for g in range(G)]
        at += 16 * G
        fine = coded and origin["policy"]["exact_form"] == 1
        for row in rows:
            need(all(1 <= b <= 2 * D if coded else b == 0 for b in row[:2]), "layer %d: bytes of codes" % i)
            need(all(1 <= b <= 2 * D if fine else b == 2 * D for b in row[2:]), "layer %d: bytes of kept rows" % i)
        layers.append({"kv_heads": G, "head_dim": D, "coded": coded, "rows": rows})
    need(at == len(raw), "bytes after the last layer")
    return layers


def plain_entry(e, size, dtype=0, layer=SHARED):
    shell.expect(e, dtype, [size], layer=layer, head=e["head"], may_compress=True)
    need(e["codec"] in CODECS.get(e["type"], (0,)), "codec of %s" % e["type"])
    need(e["codec"] == 0 or e["raw_size"] // 1032 <= e["stored_size"], "raw size of %s" % e["type"])


def read_prompts(data, entries, origin, layers):
    prompts = {}
    for e in entries:
        if e["type"] != "PROM":
            continue
        need(e["head"] < origin["prompts"] and e["head"] not in prompts, "PROM: prompt")
        plain_entry(e, e["shape"][0])
        raw = shell.content(data, e)
        need(len(raw) >= 8 + len(layers), "size of PROM")
        tokens, size = struct.unpack_from("<II", raw)
        flags, name = raw[8:8 + len(layers)], raw[8 + len(layers):]
        need(1 <= tokens <= 1 << 24 and all(f <= 1 for f in flags), "PROM: tokens or flags")
        need(len(name) == size and 1 <= size <= 255, "PROM: size of the name")
        try:
            text = name.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Refused("PROM: name: %s" % error)
        need(all(ord(c) >= 0x20 and ord(c) != 0x7F for c in text), "PROM: name")
        prompts[e["head"]] = {"name": text, "tokens": tokens, "attended": list(flags)}
    need(len(prompts) == origin["prompts"], "a prompt without PROM")
    need(len({p["name"] for p in prompts.values()}) == len(prompts), "two prompts of one name")
    return [prompts[i] for i in range(origin["prompts"])]


def count_tokens(policy, layer, n):
    if not layer["coded"]:
        return {"sinks": 0, "window": n, "anchors": 0, "coded": 0}
    s = min(n, policy["sinks"])
    w = min(n - s, policy["window"])
    left = n - s - w
    a = min(left, math.ceil(policy["anchor_fraction"] * left * (1.0 - 1e-12)))
    return {"sinks": s, "window": w, "anchors": a, "coded": left - a}


def matrices(policy, layer, g, n, name):
    """(rows, bytes of a row) of each matrix of head g in a section."""
    at = count_tokens(policy, layer, n)
    code_k, code_v, kept_k, kept_v = layer["rows"][g]
    half = 2 * layer["head_dim"]
    if name == "KEPT":
        return [(at["sinks"], half), (at["sinks"], half), (at["window"], kept_k), (at["window"], kept_v),
                (at["anchors"], kept_k), (at["anchors"], kept_v)]
    if name == "CODE":
        return [(at["coded"], code_k), (at["coded"], code_v)]
    if name == "ANCH":
        return [(at["anchors"], 4), (at["anchors"], 4)]
    gains = layer["coded"] and policy["anchor_fraction"] > 0 and policy["window"] > 0 and policy["score"] <= 1
    return [(at["window"] if gains else 0, 8)]


def size_of(policy, layer, n, name):
    return sum(r * b for g in range(layer["kv_heads"]) for r, b in matrices(policy, layer, g, n, name))


def inflate(data, e):
    stored = data[e["offset"]:e["offset"] + e["stored_size"]]
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(stored, e["raw_size"] + 1)
    except zlib.error as error:
        raise Refused("zlib stream of %s: %s" % (e["type"], error))
    need(len(raw) == e["raw_size"] and stream.eof and not stream.unused_data, "zlib stream of %s" % e["type"])
    need(zlib.crc32(raw) == e["raw_crc"], "raw checksum of %s" % e["type"])
    return raw


def layer_rows(data, e, policy, layer, n):
    """The matrices of each head, as lists of rows."""
    raw = inflate(data, e) if e["codec"] else shell.content(data, e)
    heads, at = [], 0
    for g in range(layer["kv_heads"]):
        parts = []
        for r, b in matrices(policy, layer, g, n, e["type"]):
            block = raw[at:at + r * b]
            at += r * b
            parts.append([block[i::r] if e["codec"] == 2 else block[i * b:(i + 1) * b] for i in range(r)])
        heads.append(parts)
    return heads


def halves(row):
    return struct.unpack("<%de" % (len(row) // 2), row)


def check_rows(name, heads, policy, layer, n):
    at = count_tokens(policy, layer, n)
    fine = layer["coded"] and policy["exact_form"] == 1
    for parts in heads:
        if name == "KEPT":
            for rows in parts[:2] if fine else parts:
                need(all(math.isfinite(v) for row in rows for v in halves(row)), "KEPT: a number that is not finite")
        elif name == "ANCH":
            positions = [struct.unpack("<I", row)[0] for row in parts[0]]
            need(all(a < b for a, b in zip(positions, positions[1:])), "ANCH: order")
            need(all(at["sinks"] <= p < n - at["window"] for p in positions), "ANCH: positions")
            need(not any(math.isnan(struct.unpack("<f", row)[0]) for row in parts[1]), "ANCH: scores")
        elif name == "GAIN":
            need(all(struct.unpack("<d", row)[0] >= 0 for row in parts[0]), "GAIN: scores")


def read_sections(data, entries, origin, layers, prompts, rows):
    policy = origin["policy"]
    found = set()
    for e in entries:
        name = e["type"]
        if name not in KNOWN[4:]:
            continue
        need(e["head"] < len(prompts), "%s: prompt" % name)
        prompt = prompts[e["head"]]
        n = prompt["tokens"]
        key = (name, e["head"], e["layer"])
        need(key not in found, "%s: twice" % name)
        found.add(key)
        if name == "toks":
            plain_entry(e, 4 * n)
            ids = struct.unpack("<%dI" % n, shell.content(data, e))
            prompt["ids"] = list(ids) if rows else len(ids)
        elif name == "last":
            need(1 <= e["shape"][0] <= 1 << 20, "last: size")
            plain_entry(e, e["shape"][0], dtype=2)
            prompt["last"] = shell.all_finite(shell.floats(shell.content(data, e), 2), "last")
        else:
            need(e["layer"] < len(layers), "%s: layer" % name)
            layer = layers[e["layer"]]
            plain_entry(e, size_of(policy, layer, n, name), layer=e["layer"])
            heads = layer_rows(data, e, policy, layer, n)
            check_rows(name, heads, policy, layer, n)
            if rows:
                prompt.setdefault("sections", []).append(
                    {"type": name, "layer": e["layer"], "heads": [[b"".join(m).hex() for m in parts] for parts in heads]})
    for i, prompt in enumerate(prompts):
        for l, layer in enumerate(layers):
            for name in KNOWN[4:8]:
                need((name, i, l) in found or size_of(policy, layer, prompt["tokens"], name) == 0,
                     "prompt %d, layer %d: no %s" % (i, l, name))


def decode(data, rows):
    need(data[:8] == MAGIC, "the magic is missing")
    shell.MAGIC, shell.KNOWN, shell.CODECS = MAGIC, KNOWN, (0, 1, 2)
    header = shell.read_header(data)
    entries = shell.read_table(data, header)
    shell.check_places(data, header, entries)
    meta = shell.read_meta(data, entries)
    origin = read_origin(data, header, entries)
    layers = read_geometry(data, entries, origin)
    prompts = read_prompts(data, entries, origin, layers)
    read_sections(data, entries, origin, layers, prompts, rows)
    return {"schema": 1, "id": header["book_id"].hex(), "file_size": header["file_size"], "meta": meta, "origin": origin,
            "layers": layers, "prompts": prompts, "checksums": "verified"}


def main(arguments):
    rows = "--rows" in arguments
    files = [a for a in arguments if a != "--rows"]
    if not files or any(a.startswith("--") for a in files):
        print(__doc__, file=sys.stderr)
        return 2
    status = 0
    for path in files:
        try:
            with open(path, "rb") as f:
                data = f.read()
            result = decode(data, rows)
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
