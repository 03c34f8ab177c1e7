#!/usr/bin/env python3
"""Makes the .kvp files of this folder, one per condition that a reader must refuse, and expected-kvp.txt: `make golden`.

As forge.py does for books, whose classes it uses; tests/golden/newer-minor.kvp is made here as well.
"""
import os
import struct
import sys
import zlib

import forge
from forge import GOLDEN, HEADER_FIELDS, HERE, SHARED

CASES = []
INFINITE_HALF, NAN_HALF, NAN32, NAN64 = 0x7C00, 0x7E00, 0x7FC00000, 0x7FF8 << 48


class Pack(forge.Book):
    MAGIC = b"\x89KVP\r\n\x1a\n"

    def at(self, name, prompt=SHARED, layer=SHARED):
        return [s for s in self.sections if s.get("type") == name.encode() and s.get("head") == prompt and
                s.get("layer") == layer][0]


def caches():
    return Pack("caches.kvp")


def planes():
    return Pack("planes.kvp")


def case(name, message, image, status=3):
    CASES.append((name, status, message, bytes(image)))


def header_case(name, message, **fields):
    b = caches()
    b.header = fields
    case(name, message, b.build())


def content_case(name, message, where, offset, form, value, base=caches):
    b = base()
    b.at(*where).patch(offset, form, value)
    case(name, message, b.build())


def entry_case(name, message, where, base=caches, **fields):
    b = base()
    b.late = {(b.at(*where), field): value for field, value in fields.items()}
    case(name, message, b.build())


def shell_cases():
    good = caches().build()
    case("kvp-empty", "is empty", b"")
    case("kvp-is-a-book", "not a .kvp file", open(os.path.join(GOLDEN, "full.kvb"), "rb").read())
    case("kvp-text-mode", "text mode", good.replace(b"\r\n", b"\n"))
    case("kvp-header-cut", "ends after 100 bytes", good[:100])
    case("kvp-last-byte-missing", "cut short", good[:-1])
    case("kvp-byte-appended", "appended", good + b"\0")
    swapped = bytearray(good)
    for offset, form in HEADER_FIELDS.values():
        width = struct.calcsize(form)
        swapped[offset:offset + width] = swapped[offset:offset + width][::-1]
    case("kvp-byte-swapped", "byte order is reversed", swapped)
    for name, at, message in (("header", 28, "header: checksum"), ("table", 200, "section table: checksum"),
                              ("last-section", len(good) - 1, "checksum")):
        damaged = bytearray(good)
        damaged[at] ^= 1
        case("kvp-%s-damaged" % name, message, damaged)
    b = caches()
    image = b.build()
    image[b.sections[0].get("offset") - 1] = 1
    case("kvp-padding-not-zero", "padding before it is not zero", image)
    image = caches().build()
    image[60] ^= 1
    struct.pack_into("<I", image, 124, zlib.crc32(bytes(image[:124])))
    case("kvp-id-wrong", "identity", image)
    header_case("kvp-major-0", "format version 0.0", major=0)
    header_case("kvp-major-2", "format version 2.0", major=2)
    header_case("kvp-flag-incompatible", "incompatible flags 00000001", incompatible=1)
    header_case("kvp-reserved", "reserved bytes are not zero", reserved=1)
    header_case("kvp-sections-0", "0 sections", sections=0)
    header_case("kvp-sections-max", "4294967295 sections", sections=SHARED)


def file_cases():
    for name in ("META", "CACH", "GEOM"):
        case("kvp-no-" + name.lower(), "there is no %s section" % name, caches().drop(name).build())
        b = caches()
        case("kvp-two-" + name.lower(), "a second %s section" % name, b.add(b.find(name).copy()).build())
    b = caches()
    b.find("META").raw(b"[]").set(shape0=2)
    case("kvp-meta-array", "does not begin with '{'", b.build())
    b = caches()
    b.find("META").raw(b"{" + b" " * (1 << 20)).set(shape0=(1 << 20) + 1)
    case("kvp-meta-too-large", "the limit is 1048576", b.build())
    b = caches()
    b.find("META").raw(b'{"a":1,"a":2}').set(shape0=13)
    case("kvp-meta-key-twice", "twice", b.build())
    b = planes()
    meta = b.find("META")
    b.late = {(meta, "codec"): 2}
    case("kvp-meta-planes", "META", b.build())
    entry_case("kvp-type-unknown", "must know", ("PROM", 0), type=b"NEWS")
    entry_case("kvp-codec-3", "unknown codec 3", ("CODE", 0, 0), codec=3)
    entry_case("kvp-geom-planes", "must be stored raw", ("GEOM",), codec=2)
    entry_case("kvp-toks-planes", "expected 0 (raw) or 1", ("toks", 0), codec=2)
    entry_case("kvp-last-zlib", "must be stored raw", ("last", 0), codec=1)
    entry_case("kvp-prom-zlib", "must be stored raw", ("PROM", 0), codec=1)
    entry_case("kvp-dtype", "dtype is 1", ("CODE", 0, 0), dtype=1)
    entry_case("kvp-kind", "kind is 0", ("CODE", 0, 0), kind=0)
    entry_case("kvp-groups", "groups is 2", ("CODE", 0, 0), groups=2)
    entry_case("kvp-dims", "dimensions is 2", ("CODE", 0, 0), dims=2)
    entry_case("kvp-toks-of-a-layer", "layer is 0", ("toks", 0), layer=0)
    entry_case("kvp-cach-of-a-prompt", "prompt is 0", ("CACH",), head=0)


def origin_cases():
    def origin(name, message, offset, form, value):
        content_case("kvp-cach-" + name, message, ("CACH",), offset, form, value)
    for size in (72, 88):
        b = caches()
        cach = b.find("CACH")
        cach.raw((cach.data + bytes(8))[:size]).set(shape0=size)
        case("kvp-cach-size-%d" % size, "%d bytes, expected 80" % size, b.build())
    origin("fraction", "anchor fraction 1.5", 32, "d", 1.5)
    origin("fraction-nan", "anchor fraction", 32, "d", float("nan"))
    origin("score", "anchor score 5", 40, "I", 5)
    origin("exact-form", "exact form 2", 52, "I", 2)
    origin("reserved", "reserved bytes", 56, "Q", 1)
    origin("reserved-last", "reserved bytes", 76, "I", 1)
    origin("prompts-0", "0 prompts", 72, "I", 0)
    origin("prompts-4097", "4097 prompts", 72, "I", 4097)
    origin("prompts-max", "4294967295 prompts", 72, "I", SHARED)
    origin("prompts-fewer", "expected one for each of 1 prompts", 72, "I", 1)
    origin("prompts-more", "prompt 2 has no PROM", 72, "I", 3)
    origin("window", "tokens make", 44, "I", 5)
    origin("sinks", "tokens make", 48, "I", 2)
    b = caches()
    cach = b.find("CACH")
    cach.raw(bytes(32) + cach.data[32:])
    case("kvp-no-book-but-codes", "in a file with a book", b.build())
    content_case("kvp-fine-in-half", "kept tokens", ("CACH",), 52, "I", 0, base=planes)


def geometry_cases():
    def geom(name, message, offset, value, form="I"):
        content_case("kvp-geom-" + name, message, ("GEOM",), offset, form, value)
    geom("layers-0", "0 layers", 0, 0)
    geom("layers-1025", "1025 layers", 0, 1025)
    geom("layers-fewer", "bytes follow the last layer", 0, 2)
    geom("layers-more", "ends before layer 3", 0, 4)
    geom("reserved", "zeros after", 4, 1)
    geom("kv-heads-0", "0 KV heads", 8, 0)
    geom("kv-heads-1025", "1025 KV heads", 8, 1025)
    geom("head-dim-0", "of 0 channels", 12, 0)
    geom("head-dim-1025", "of 1025 channels", 12, 1025)
    geom("head-dim-other", "kept tokens", 12, 10)
    geom("coded-2", "coded is 2", 16, 2)
    geom("coded-0", "codes of", 16, 0)
    geom("layer-reserved", "zeros after", 20, 1)
    geom("code-bytes-0", "codes of 0 bytes", 24, 0)
    geom("code-bytes-17", "codes of 17 bytes", 24, 17)
    geom("code-bytes-2", "tokens make", 24, 2)
    geom("kept-bytes-15", "kept tokens of 15 bytes", 32, 15)
    content_case("kvp-geom-fine-bytes-0", "kept tokens of 0 bytes", ("GEOM",), 32, "I", 0, base=planes)
    content_case("kvp-geom-fine-bytes-17", "kept tokens of 17 bytes", ("GEOM",), 32, "I", 17, base=planes)
    for size, message in ((4, "3 layers"), (20, "ends before layer 0"), (30, "ends within layer 0")):
        b = caches()
        geometry = b.find("GEOM")
        geometry.raw(geometry.data[:size]).set(shape0=size)
        case("kvp-geom-%d-bytes" % size, message, b.build())


def prompt_cases():
    def prom(name, message, offset, form, value):
        content_case("kvp-prom-" + name, message, ("PROM", 0), offset, form, value)
    case("kvp-prom-missing", "prompt 0 has no PROM", caches().drop("PROM").build())
    b = caches()
    case("kvp-prom-twice", "expected one for each", b.add(b.find("PROM").copy()).build())
    entry_case("kvp-prom-outside", "expected one for each", ("PROM", 1), head=2)
    prom("tokens-0", "0 tokens", 0, "I", 0)
    prom("tokens-max", "4294967295 tokens", 0, "I", SHARED)
    b = caches().drop("toks")
    b.at("PROM", 0).patch(0, "I", 21)
    case("kvp-prom-tokens-21", "21 tokens make", b.build())
    prom("name-longer", "a name of 7 bytes", 4, "I", 7)
    prom("name-max", "a name of 4294967295 bytes", 4, "I", SHARED)
    prom("flag-2", "flag of layer 1 is 2", 9, "B", 2)
    prom("name-control", "a byte 09", 11, "B", 9)
    prom("name-delete", "a byte 7f", 11, "B", 0x7F)
    prom("name-zero", "a byte 00", 12, "B", 0)
    prom("name-not-utf8", "a byte ff", 11, "B", 0xFF)

    def renamed(name):
        b = caches()
        section = b.at("PROM", 0)
        data = section.data[:4] + struct.pack("<I", len(name)) + section.data[8:11] + name
        section.raw(data).set(shape0=len(data))
        return b
    case("kvp-prom-no-name", "name of 0 bytes", renamed(b"").build())
    case("kvp-prom-name-256", "name of 256 bytes", renamed(b"x" * 256).build())
    case("kvp-prom-name-twice", "the same name", renamed("short ä".encode()).build())


def layer_cases():
    for name in ("KEPT", "CODE", "ANCH", "GAIN"):
        b = caches()
        b.sections.remove(b.at(name, 0, 0))
        case("kvp-no-" + name.lower(), "there is no %s section" % name, b.build())
        b = caches()
        case("kvp-two-" + name.lower(), "two of them", b.add(b.at(name, 0, 0).copy()).build())
        b = caches()
        section = b.at(name, 0, 0)
        section.raw(section.data[:-1]).set(shape0=len(section.data))
        case("kvp-%s-short" % name.lower(), "tokens make", b.build())
        entry_case("kvp-%s-layer-outside" % name.lower(), "the file has 3 layers", (name, 0, 0), layer=3)
        entry_case("kvp-%s-prompt-outside" % name.lower(), "the file has 2 prompts", (name, 0, 0), head=2)
        entry_case("kvp-%s-shape" % name.lower(), "shape[0] is 1", (name, 0, 0), shape0=1)
    for name in ("toks", "last"):
        b = caches()
        case("kvp-two-" + name, "two of them", b.add(b.at(name, 0).copy()).build())
        entry_case("kvp-%s-outside" % name, "the file has 2 prompts", (name, 0), head=2)
    entry_case("kvp-code-of-exact-layer", "tokens make 0", ("CODE", 0, 0), layer=2)
    entry_case("kvp-toks-size", "expected 28", ("toks", 0), head=1)
    entry_case("kvp-last-0", "0 numbers", ("last", 0), shape0=0)
    entry_case("kvp-last-too-many", "1048577 numbers", ("last", 0), shape0=(1 << 20) + 1)
    entry_case("kvp-last-dtype", "dtype is 1", ("last", 0), dtype=1)
    entry_case("kvp-inflates-too-much", "cannot come of", ("KEPT", 0, 2), base=planes, raw_size=1 << 31)


def content_cases():
    # Layer 0 of 20 tokens: 1 sink, 15 that left (4 anchors, 11 codes), 4 in the window; 2 heads, D = 8: rows of 16 bytes.
    content_case("kvp-sink-infinite", "a key of a sink has channel 3", ("KEPT", 0, 0), 6, "H", INFINITE_HALF)
    content_case("kvp-sink-value-nan", "a value of a sink has channel 0", ("KEPT", 0, 0), 16, "H", NAN_HALF)
    content_case("kvp-window-nan", "a key of the window", ("KEPT", 0, 0), 32, "H", NAN_HALF)
    content_case("kvp-window-value-infinite", "a value of the window", ("KEPT", 0, 0), 32 + 64, "H", 0xFC00)
    content_case("kvp-anchor-nan", "a key of an anchor", ("KEPT", 0, 0), 32 + 128, "H", NAN_HALF)
    content_case("kvp-second-head-nan", "KV head 1: a key of a sink", ("KEPT", 0, 0), 32 + 128 + 128, "H", NAN_HALF)
    content_case("kvp-exact-layer-nan", "a key of the window", ("KEPT", 0, 2), 0, "H", NAN_HALF)
    content_case("kvp-anchor-in-sinks", "anchor 0 stands at position 0, expected 1", ("ANCH", 0, 0), 0, "I", 0)
    content_case("kvp-anchor-in-window", "anchor 3 stands at position 16", ("ANCH", 0, 0), 12, "I", 16)
    content_case("kvp-anchor-max", "position 4294967295", ("ANCH", 0, 0), 12, "I", SHARED)
    b = caches()
    section = b.at("ANCH", 0, 0)
    section.patch(4, "I", struct.unpack_from("<I", section.data)[0])
    case("kvp-anchor-twice", "anchor 1 stands at position", b.build())
    content_case("kvp-anchor-score-nan", "score of anchor 2 is NaN", ("ANCH", 0, 0), 16 + 8, "I", NAN32)
    content_case("kvp-gain-nan", "token 0 of the window", ("GAIN", 0, 0), 0, "Q", NAN64)
    content_case("kvp-gain-negative", "token 1 of the window", ("GAIN", 0, 0), 8, "d", -1e-300)
    content_case("kvp-last-nan", "number 1 is infinite or NaN", ("last", 0), 4, "I", NAN32)
    content_case("kvp-last-infinite", "number 2 is infinite or NaN", ("last", 0), 8, "I", 0xFF800000)
    damaged = {"KEPT": ("KEPT", 0, 0), "CODE": ("CODE", 0, 0), "ANCH": ("ANCH", 1, 1), "GAIN": ("GAIN", 1, 0),
               "toks": ("toks", 0), "last": ("last", 0)}
    for name, where in damaged.items():
        b = caches()
        image = b.build()
        image[b.at(*where).get("offset")] ^= 0x40
        case("kvp-%s-damaged" % name.lower(), "checksum", image)


def zlib_cases():
    def stream(name, message, change):
        b = planes()
        section = b.at("KEPT", 0, 2)
        raw = zlib.decompress(section.data)
        codec = section.get("codec")
        change(section, raw)
        section.set(codec=codec)
        case("kvp-zlib-" + name, message, b.build())
    stream("longer", "holds more than", lambda s, raw: s.packed(zlib.compress(raw + b"\0"), len(raw), zlib.crc32(raw)))
    stream("shorter", "ends before", lambda s, raw: s.packed(zlib.compress(raw[:-1]), len(raw), zlib.crc32(raw)))
    stream("trailing", "follow its zlib stream",
           lambda s, raw: s.packed(zlib.compress(raw) + b"\0", len(raw), zlib.crc32(raw)))
    stream("damaged", "zlib stream", lambda s, raw: s.packed(b"\xFF" * 100, len(raw), zlib.crc32(raw)))
    stream("checksum", "do not have the checksum",
           lambda s, raw: s.packed(zlib.compress(raw), len(raw), zlib.crc32(raw) ^ 1))
    stream("nan", "a key of the window", lambda s, raw: s.packed(
        zlib.compress(raw[:20] + b"\x7E" * (len(raw) - 20)), len(raw), zlib.crc32(raw[:20] + b"\x7E" * (len(raw) - 20))))


def newer_minor():
    """A file of a version to come: longer header, entries and CACH, a compatible flag, optional sections nobody knows."""
    b = caches()
    b.minor, b.header_size, b.entry_size = 3, 144, 104
    b.header = {"compatible": 0x80000001, "reserved": 0x1122334455667788}
    cach = b.find("CACH")
    cach.raw(cach.data + b"news and").set(shape0=88)
    b.add(b.find("META").copy().raw(b"whatever").set(type=b"hist", codec=9, dtype=9, raw_size=8, head=77))
    return b.build()


def main():
    shell_cases()
    file_cases()
    origin_cases()
    geometry_cases()
    prompt_cases()
    layer_cases()
    content_cases()
    zlib_cases()
    names = [c[0] for c in CASES]
    if len(set(names)) != len(names):
        sys.exit("forge_kvp.py: a name twice")
    for old in os.listdir(HERE):
        if old.endswith(".kvp"):
            os.remove(os.path.join(HERE, old))
    with open(os.path.join(HERE, "expected-kvp.txt"), "w") as table:
        table.write("# file, status, part of the message or of the place. Made by `make golden`.\n")
        for name, status, message, image in CASES:
            with open(os.path.join(HERE, name + ".kvp"), "wb") as f:
                f.write(image)
            table.write("%s.kvp\t%d\t%s\n" % (name, status, message))
    with open(os.path.join(GOLDEN, "newer-minor.kvp"), "wb") as f:
        f.write(newer_minor())


if __name__ == "__main__":
    main()
