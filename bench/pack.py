#!/usr/bin/env python3
"""Packed caches: their size beside half floats and the entropy of their codes, and the time to load one beside running the
prompt again.

    bench/pack.py --model M.gguf --text TEXT --book B.kvb... [--tokens 512 1024 2048] [--rounds 5] [--kvbook build/kvbook]

Prompts are the beginnings of TEXT, cut at about so many tokens. Entropy is that of the codes of one group of channels over the
prompt's coded tokens (order 0, by their frequencies, so it is too low where tokens are few beside K), summed over groups.
"""
import argparse
import datetime
import math
import os
import re
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "spec"))
import kvb_decode  # noqa: E402
import kvp_decode  # noqa: E402


def cpu_name():
    try:
        with open("/proc/cpuinfo") as f:
            return next(line.split(":", 1)[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit("%s: %s" % (" ".join(command), done.stderr))
    return done.stderr


def seconds(text):
    """What the command prints: "0.42 s", "12.3 s" or "2:03"."""
    if ":" in text:
        parts = [float(p) for p in text.split(":")]
        return sum(p * 60 ** i for i, p in enumerate(reversed(parts)))
    return float(text)


TIME = r"(\d[\d.:]*)"


def code_shapes(path):
    """(S, bits) by (layer, head, kind) from a book's table."""
    with open(path, "rb") as f:
        data = f.read()
    kvb_decode.MAGIC, kvb_decode.KNOWN = b"\x89KVB\r\n\x1a\n", ("CODE",)
    header = kvb_decode.read_header(data)
    start, stride = header["table_offset"], header["entry_size"]
    shapes = {}
    for i in range(header["sections"]):
        row = data[start + i * stride:start + (i + 1) * stride]
        if row[:4] != b"CODE":
            continue
        kind, layer, head, _, S, _, K, dims, _, M = struct.unpack_from("<10I", row, 8)
        shapes[layer, head, kind] = S, (M if dims == 4 else 1) * (K.bit_length() - 1)
    return shapes


def entropy_bits(rows, S, bits):
    """Of all groups of one head, in bits over all rows."""
    mask, total = (1 << bits) - 1, 0.0
    words = [int.from_bytes(row, "little") for row in rows]
    for s in range(S):
        counts = Counter(w >> s * bits & mask for w in words)
        total -= sum(n * math.log2(n / len(words)) for n in counts.values())
    return total


def sections(path, shapes):
    """Bytes by type of section: raw, as stored, zlib of rows, of planes, Huffman codes of planes; the entropy of the codes."""
    with open(path, "rb") as f:
        data = f.read()
    result = kvp_decode.decode(data, False)
    kvb_decode.MAGIC, kvb_decode.KNOWN, kvb_decode.CODECS = kvp_decode.MAGIC, kvp_decode.KNOWN, (0, 1, 2)
    header = kvb_decode.read_header(data)
    policy, layers = result["origin"]["policy"], result["layers"]
    sizes, entropy = {}, 0.0
    for e in kvb_decode.read_table(data, header):
        if e["type"] not in ("KEPT", "CODE", "ANCH", "GAIN"):
            continue
        layer = layers[e["layer"]]
        heads = kvp_decode.layer_rows(data, e, policy, layer, result["prompts"][0]["tokens"])
        rows = b"".join(b"".join(part) for parts in heads for part in parts)
        planes = b"".join(bytes(c) for parts in heads for part in parts for c in zip(*part))
        huffman = zlib.compressobj(9, strategy=zlib.Z_HUFFMAN_ONLY)
        packed = len(huffman.compress(planes)) + len(huffman.flush())
        found = sizes.setdefault(e["type"], [0] * 5)
        for i, size in enumerate((e["raw_size"], e["stored_size"], len(zlib.compress(rows, 6)),
                                  len(zlib.compress(planes, 6)), packed)):
            found[i] += size
        if e["type"] == "CODE":
            for g, parts in enumerate(heads):
                for kind in (0, 1):
                    entropy += entropy_bits(parts[kind], *shapes[e["layer"], g, kind])
    return result["prompts"][0]["tokens"], layers, sizes, entropy / 8, header["file_size"]


def cut(path, tokens, out):
    """The first words that make about so many tokens: 4.2 bytes each in WikiText."""
    with open(path, "rb") as f:
        data = f.read(int(tokens * 4.2))
    with open(out, "wb") as f:
        f.write(data[:data.rfind(b" ")])


def measure(args, book, tokens, folder):
    prompt, raw, packed = (os.path.join(folder, n) for n in ("prompt.txt", "raw.kvp", "zlib.kvp"))
    cut(args.text, tokens, prompt)
    base = ["--model", args.model, "--book", book]
    kvbook = [args.kvbook]
    times = {"load": [], "load zlib": [], "start": []}
    said = run(kvbook + ["pack", *base, "--text", prompt, "-o", raw])
    compute = seconds(re.search(r"tokens in " + TIME, said).group(1))
    run(kvbook + ["pack", *base, "--text", prompt, "--zlib", "-o", packed])
    for _ in range(args.rounds):
        for name, file in (("load", raw), ("load zlib", packed)):
            begun = time.monotonic()
            said = run(kvbook + ["generate", *base, "--cache", file, "-n", "1"])
            if name == "load":
                times["start"].append(time.monotonic() - begun)
            times[name].append(float(re.search(r"came with \S+ in (\S+) ms", said).group(1)) / 1e3)
    n, layers, sizes, entropy, _ = sections(packed, code_shapes(book))
    half = sum(2 * 2 * n * l["kv_heads"] * l["head_dim"] for l in layers)
    total = [sum(s[i] for s in sizes.values()) for i in range(5)]
    print("\n%s, %d tokens: half floats %d bytes" % (os.path.basename(book), n, half))
    print("  file %d bytes, %.1f %% of half floats; with --zlib %d, %.1f %%" %
          (os.path.getsize(raw), 100 * os.path.getsize(raw) / half, os.path.getsize(packed),
           100 * os.path.getsize(packed) / half))
    print("  %-6s %10s %10s %8s %10s %10s %10s" % ("", "raw", "--zlib", "gain", "rows", "planes", "Huffman"))
    for name, s in list(sizes.items()) + [("all", total)]:
        print("  %-6s %10d %10d %7.1f%% %10d %10d %10d" % (name, s[0], s[1], 100 - 100 * s[1] / s[0], *s[2:]))
    if "CODE" in sizes:
        print("  entropy of the codes %d bytes, %.1f %% under raw" % (entropy, 100 - 100 * entropy / sizes["CODE"][0]))
    m = {k: statistics.median(v) for k, v in times.items()}
    print("  load %.3f s, with zlib %.3f s; run the prompt again %.2f s: %.0f times" %
          (m["load"], m["load zlib"], compute, compute / m["load"]))
    print("  whole command from the file to the first token, with opening the model: %.2f s" % m["start"], flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--book", required=True, nargs="+")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kvbook", default="build/kvbook")
    args = parser.parse_args()
    print("%s, %d cores, %s" % (cpu_name(), len(os.sched_getaffinity(0)), datetime.date.today()))
    print("bench/pack.py " + " ".join(sys.argv[1:]))
    for book in args.book:
        for tokens in args.tokens:
            with tempfile.TemporaryDirectory() as folder:
                measure(args, book, tokens, folder)


if __name__ == "__main__":
    main()
