#!/usr/bin/env python3
"""Makes the files of this folder, one per condition that a reader must refuse, and expected.txt: `make golden`.

Each is a golden book with one thing wrong and, unless the damage is the point, every checksum made right again. The one
file a reader must accept though it is unusual, tests/golden/newer-minor.kvb, is made here as well.
"""
import hashlib
import os
import struct
import sys
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(HERE, "..", "golden")
SHARED = 0xFFFFFFFF
HEADER_FIELDS = {"major": (8, "H"), "minor": (10, "H"), "header_size": (12, "I"), "file_size": (16, "Q"),
                 "incompatible": (24, "I"), "compatible": (28, "I"), "table_offset": (32, "Q"), "sections": (40, "I"),
                 "entry_size": (44, "I"), "order": (48, "I"), "table_crc": (52, "I"), "reserved": (88, "Q")}
ENTRY_FIELDS = {"type": (0, "4s"), "codec": (4, "H"), "dtype": (6, "H"), "kind": (8, "I"), "layer": (12, "I"),
                "head": (16, "I"), "first_group": (20, "I"), "groups": (24, "I"), "d": (28, "I"), "K": (32, "I"),
                "dims": (36, "I"), "shape0": (40, "I"), "shape1": (44, "I"), "shape2": (48, "I"), "shape3": (52, "I"),
                "offset": (56, "Q"), "stored_size": (64, "Q"), "raw_size": (72, "Q"), "stored_crc": (80, "I"),
                "raw_crc": (84, "I"), "reserved": (88, "Q")}


class Section:
    def __init__(self, entry, data):
        self.entry, self.data = bytearray(entry), bytes(data)

    def copy(self):
        return Section(self.entry, self.data)

    def get(self, field):
        offset, form = ENTRY_FIELDS[field]
        return struct.unpack_from("<" + form, self.entry, offset)[0]

    def set(self, **fields):
        for field, value in fields.items():
            offset, form = ENTRY_FIELDS[field]
            struct.pack_into("<" + form, self.entry, offset, value)
        return self

    def raw(self, data):
        """New content, stored raw."""
        self.data = bytes(data)
        crc = zlib.crc32(self.data)
        return self.set(codec=0, stored_size=len(data), raw_size=len(data), stored_crc=crc, raw_crc=crc)

    def packed(self, stored, raw_size, raw_crc):
        """New content, as a zlib stream made by the caller."""
        self.data = bytes(stored)
        return self.set(codec=1, stored_size=len(stored), raw_size=raw_size, stored_crc=zlib.crc32(self.data),
                        raw_crc=raw_crc)

    def patch(self, offset, form, value):
        data = bytearray(self.data)
        struct.pack_into("<" + form, data, offset, value)
        return self.raw(data)


class Book:
    MAGIC = b"\x89KVB\r\n\x1a\n"

    def __init__(self, name):
        with open(os.path.join(GOLDEN, name), "rb") as f:
            image = f.read()
        count = struct.unpack_from("<I", image, 40)[0]
        self.minor, self.header_size, self.entry_size = 0, 128, 96
        self.sections = []
        for i in range(count):
            entry = image[128 + 96 * i:224 + 96 * i]
            offset, size = struct.unpack_from("<QQ", entry, 56)
            self.sections.append(Section(entry, image[offset:offset + size]))
        self.header = {}  # header fields to overrule
        self.late = {}    # (section, field) to overrule once the sections have their places

    def find(self, name, nth=0):
        return [s for s in self.sections if s.get("type") == name.encode()][nth]

    def drop(self, name, nth=0):
        self.sections.remove(self.find(name, nth))
        return self

    def add(self, section):
        self.sections.append(section)
        return self

    def place(self):
        end = self.header_size + len(self.sections) * self.entry_size
        for s in self.sections:
            offset = (end + 255) // 256 * 256
            s.set(offset=offset)
            end = offset + len(s.data)
        return end

    def build(self):
        size = self.place()
        for (section, field), value in self.late.items():
            section.set(**{field: value})
        image = bytearray(size)
        at = self.header_size
        for s in self.sections:
            image[at:at + len(s.entry)] = s.entry
            if len(s.entry) < self.entry_size:
                image[at + len(s.entry):at + self.entry_size] = b"\x55" * (self.entry_size - len(s.entry))
            at += self.entry_size
        end = at
        for s in self.sections:
            start = (end + 255) // 256 * 256
            image[start:start + len(s.data)] = s.data
            end = start + len(s.data)
        return self.seal(image)

    def seal(self, image):
        table = bytes(image[self.header_size:self.header_size + len(self.sections) * self.entry_size])
        image[:8] = self.MAGIC
        fields = {"major": 1, "minor": self.minor, "header_size": self.header_size, "file_size": len(image),
                  "table_offset": self.header_size, "sections": len(self.sections), "entry_size": self.entry_size,
                  "order": 0x01020304, "table_crc": zlib.crc32(table)}
        fields.update(self.header)
        image[56:88] = hashlib.sha256(table).digest()
        for field, value in fields.items():
            offset, form = HEADER_FIELDS[field]
            struct.pack_into("<" + form, image, offset, value)
        struct.pack_into("<I", image, self.header_size - 4, zlib.crc32(bytes(image[:self.header_size - 4])))
        return image


CASES = []


def case(name, message, image, status=3):
    CASES.append((name, status, message, bytes(image)))


def minimal():
    return Book("minimal.kvb")


def full():
    return Book("full.kvb")


def additive():
    return Book("additive.kvb")


def scaled():
    return Book("scaled.kvb")


def outliers():
    return Book("outliers.kvb")


def groups():
    return Book("groups.kvb")


def fine():
    return Book("fine.kvb")


def header_case(name, message, **fields):
    b = minimal()
    b.header = fields
    case(name, message, b.build())


def entry_case(name, message, section, base=minimal, nth=0, **fields):
    """Entry fields that placing the sections does not overwrite, or does: these are set afterwards."""
    b = base()
    s = b.find(section, nth)
    b.late = {(s, field): value for field, value in fields.items()}
    case(name, message, b.build())


def content_case(name, message, section, offset, form, value, base=minimal, nth=0):
    b = base()
    b.find(section, nth).patch(offset, form, value)
    case(name, message, b.build())


def shell_cases():
    good = minimal().build()
    case("empty", "is empty", b"")
    case("one-byte", "magic", good[:1])
    case("another-format", "magic", b"GGUF" + bytes(60))
    case("magic-crlf-to-lf", "text mode", good.replace(b"\r\n", b"\n"))
    case("magic-lf-to-crlf", "text mode", good.replace(b"\n", b"\r\n"))
    case("magic-seven-bits", "text mode", bytes([good[0] & 0x7F]) + good[1:])
    case("header-cut", "ends after 100 bytes", good[:100])
    case("last-byte-missing", "cut short", good[:-1])
    case("byte-appended", "appended", good + b"\0")
    swapped = bytearray(good)
    for offset, form in HEADER_FIELDS.values():
        width = struct.calcsize(form)
        swapped[offset:offset + width] = swapped[offset:offset + width][::-1]
    case("byte-swapped", "byte order is reversed", swapped)
    damaged = bytearray(good)
    damaged[28] ^= 1
    case("header-damaged", "header: checksum", damaged)
    damaged = bytearray(good)
    damaged[200] ^= 1
    case("table-damaged", "section table: checksum", damaged)
    damaged = bytearray(good)
    damaged[-1] ^= 1
    case("section-damaged", "value): checksum", damaged)
    damaged = bytearray(good)
    damaged[0x2FF] = 1
    case("padding-not-zero", "padding before it is not zero", damaged)
    b = minimal()
    image = b.build()
    image[60] ^= 1
    struct.pack_into("<I", image, 124, zlib.crc32(bytes(image[:124])))
    case("book-id-wrong", "identity", image)
    image = minimal().build()
    image += bytes(8)
    case("trailing-bytes-counted", "follow the last section", minimal().seal(image))


def header_cases():
    header_case("major-0", "format version 0.0", major=0)
    header_case("major-2", "format version 2.0", major=2)
    header_case("byte-order-unknown", "byte-order tag", order=0x01020305)
    header_case("header-size-0", "header size 0", header_size=0)
    header_case("header-size-136", "header size 136", header_size=136)
    header_case("header-size-max", "header size 4294967295", header_size=SHARED)
    header_case("header-reserved", "reserved bytes are not zero", reserved=1)
    header_case("flag-incompatible", "incompatible flags 00000004", incompatible=4)
    header_case("file-size-0", "should have 0 bytes", file_size=0)
    header_case("file-size-2-63", "should have 9223372036854775808", file_size=1 << 63)
    header_case("table-at-0", "section table at 0", table_offset=0)
    header_case("table-inside-header", "section table at 64", table_offset=64)
    header_case("table-at-max", "section table at 18446744073709551615", table_offset=(1 << 64) - 1)
    header_case("sections-0", "0 sections", sections=0)
    header_case("sections-2-20", "do not fit", sections=1 << 20)
    header_case("sections-max", "4294967295 sections", sections=SHARED)
    header_case("entry-size-0", "entries of 0 bytes", entry_size=0)
    header_case("entry-size-88", "entries of 88 bytes", entry_size=88)
    header_case("entry-size-104", "entries of 104 bytes", entry_size=104)
    for size in (4104, 100):
        b = minimal()
        b.minor, b.header = 1, {"entry_size": size}
        case("newer-minor-entry-size-%d" % size, "entries of %d bytes" % size, b.build())
    b = minimal()
    b.minor, b.header = 1, {"header_size": 132}
    case("newer-minor-header-size-132", "header size 132", b.build())


def entry_cases():
    entry_case("type-unknown-critical", "must know", "POLC", type=b"NEWS")
    entry_case("type-not-letters", "four letters", "POLC", type=b"P\0LC")
    entry_case("codec-unknown", "unknown codec 2", "CODE", codec=2)
    entry_case("dtype-unknown", "unknown dtype 3", "CODE", dtype=3)
    entry_case("raw-sizes-differ", "sizes or checksums differ", "CODE", raw_size=8)
    entry_case("raw-checksums-differ", "sizes or checksums differ", "CODE", raw_crc=8)
    entry_case("entry-reserved", "reserved bytes of its table entry", "CODE", reserved=1)
    entry_case("offset-unaligned", "not a multiple of 256", "CODE", offset=0x601)
    entry_case("offset-overlap", "without overlap", "CODE", offset=0x500)
    entry_case("offset-in-table", "without overlap", "META", offset=0)
    entry_case("offset-gap", "without overlap or gap", "CODE", nth=1, offset=0x800)
    entry_case("offset-outside", "without overlap", "CODE", offset=1 << 40)
    entry_case("offset-wraps", "without overlap", "CODE", offset=(1 << 64) - 256)
    entry_case("size-0", "0 bytes at", "CODE", stored_size=0, raw_size=0, stored_crc=0, raw_crc=0)
    entry_case("size-wraps", "18446744073709551615 bytes at", "CODE", stored_size=(1 << 64) - 1, raw_size=(1 << 64) - 1)
    entry_case("size-outside", "bytes at", "CODE", nth=1, stored_size=4096, raw_size=4096)
    b = minimal()
    b.sections[3], b.sections[4] = b.sections[4], b.sections[3]
    b.place()
    first, second = b.sections[3].get("offset"), b.sections[4].get("offset")
    b.late = {(b.sections[3], "offset"): second, (b.sections[4], "offset"): first}
    case("sections-unsorted", "without overlap", b.build())
    for name in ("META", "GEOM", "POLC"):
        case("missing-" + name.lower(), "there is no %s section" % name, minimal().drop(name).build())
        b = minimal()
        case("twice-" + name.lower(), "a second %s section" % name, b.add(b.find(name).copy()).build())
    b = minimal()
    b.add(b.find("META").copy().set(type=b"note", codec=2))
    case("optional-codec-unknown", "unknown codec 2", b.build())


def meta_cases():
    def meta(name, message, data):
        b = minimal()
        b.find("META").raw(data).set(shape0=len(data))
        case("meta-" + name, message, b.build())

    meta("not-json", "expected", b"{nonsense}")
    meta("cut", "JSON", b'{"a":1')
    meta("trailing", "something follows", b'{"a":1} {}')
    meta("array", "begin with '{'", b"[1]")
    meta("leading-space", "begin with '{'", b" {}")
    meta("byte-order-mark", "begin with '{'", b"\xef\xbb\xbf{}")
    meta("not-utf8", "not UTF-8", b'{"a":"\xff"}')
    meta("overlong-utf8", "not UTF-8", b'{"a":"\xc0\xaf"}')
    meta("nul-byte", "control character", b'{"a":"\0"}')
    meta("nul-escape", "NUL", b'{"a":"\\u0000"}')
    meta("duplicate-key", "key twice", b'{"a":1,"a":2}')
    meta("depth-17", "deeper than 16", b'{"a":' + b"[" * 16 + b"]" * 16 + b"}")
    meta("depth-1000", "deeper than 16", b'{"a":' + b"[" * 1000 + b"]" * 1000 + b"}")
    meta("number-too-large", "too large", b'{"a":1e999}')
    meta("nan", "expected a value", b'{"a":NaN}')
    entry_case("meta-kind", "kind is 0", "META", kind=0)
    entry_case("meta-shape", "shape[0] is 42", "META", shape0=42)
    entry_case("meta-dtype", "dtype is 1", "META", dtype=1)
    big = b'{"a":"' + b"x" * (1 << 20) + b'"}'
    b = minimal()
    b.find("META").packed(zlib.compress(big, 9), len(big), zlib.crc32(big)).set(shape0=len(big))
    case("meta-over-limit", "the limit is 1048576", b.build())


def zlib_cases():
    raw = b'{"note":"' + b"codebook " * 20 + b'"}'
    stream = zlib.compress(raw, 9)

    def packed(name, message, stored, size=len(raw), crc=zlib.crc32(raw)):
        b = minimal()
        b.find("META").packed(stored, size, crc).set(shape0=size)
        case("zlib-" + name, message, b.build())

    packed("bomb", "holds more than 100 bytes", zlib.compress(b"{" + bytes(1 << 20), 9), size=100)
    packed("cut", "ends before", stream[:-8])
    packed("trailing", "4 bytes follow its zlib stream", stream + bytes(4))
    packed("too-short", "ends before 300 bytes", stream, size=300)
    packed("raw-checksum", "inflated bytes do not have the checksum", stream, crc=1)
    packed("damaged", "damaged", stream[:2] + b"\xff" * (len(stream) - 2))
    packed("not-zlib", "damaged", b"\x1f\x8b" + stream[2:])
    dictionary = zlib.compressobj(9, zdict=b"codebook codebook")
    packed("preset-dictionary", "preset dictionary", dictionary.compress(raw) + dictionary.flush())
    for name, base in (("GEOM", minimal), ("CODE", minimal), ("XFRM", full)):
        b = base()
        s = b.find(name)
        s.packed(zlib.compress(s.data, 9), len(s.data), zlib.crc32(s.data))
        case("compressed-" + name.lower(), "must be stored raw", b.build())


def geometry_cases():
    nan, inf = float("nan"), float("inf")
    for name, message, offset, form, value in (
            ("layers-0", "0 layers", 0, "I", 0), ("layers-1025", "1025 layers", 0, "I", 1025),
            ("layers-max", "4294967295 layers", 0, "I", SHARED),
            ("layers-2", "do not hold 2 layers", 0, "I", 2), ("record-56", "records of 56 bytes", 4, "I", 56),
            ("heads-0", "0 query heads", 8, "I", 0), ("heads-1025", "1025 query heads", 8, "I", 1025),
            ("kv-heads-0", "0 KV heads", 12, "I", 0), ("kv-heads-2", "2 KV heads", 12, "I", 2),
            ("head-dim-0", "head dimension 0", 16, "I", 0), ("head-dim-1025", "head dimension 1025", 16, "I", 1025),
            ("kind-3", "layer kind 3", 20, "I", 3), ("sliding-no-window", "sliding window of 0", 20, "I", 1),
            ("window-not-sliding", "sliding window of 7", 24, "I", 7), ("frame-3", "RoPE frame 3", 28, "I", 3),
            ("frame-block-0", "RoPE block of 0", 28, "I", 2), ("block-in-pre", "RoPE block of 16", 32, "I", 16),
            ("rope-style-3", "RoPE style 3", 36, "I", 3), ("rope-dims-0", "0 rotating channels", 40, "I", 0),
            ("rope-dims-odd", "3 rotating channels", 40, "I", 3), ("rope-dims-6", "6 rotating channels", 40, "I", 6),
            ("rope-dims-no-rope", "4 rotating channels without RoPE", 36, "I", 0),
            ("reserved", "reserved bytes", 44, "I", 1), ("rope-base-0", "RoPE base 0", 48, "d", 0.0),
            ("rope-base-nan", "RoPE base", 48, "d", nan), ("rope-base-negative", "RoPE base -1", 48, "d", -1.0),
            ("scale-0", "attention scale 0", 56, "d", 0.0), ("scale-nan", "attention scale", 56, "d", nan),
            ("scale-infinite", "attention scale inf", 56, "d", inf),
            ("scale-denormal", "attention scale", 56, "d", 5e-324), ("reserved-tail", "reserved bytes", 64, "Q", 1)):
        content_case("geom-" + name, message, "GEOM", offset, form, value)
    b = minimal()
    geom = bytearray(b.find("GEOM").data)
    struct.pack_into("<II", geom, 36, 0, 0)
    b.find("GEOM").raw(geom)
    case("geom-base-no-rope", "RoPE base 10000 without RoPE", b.build())
    content_case("geom-all-unsupported", "no layer has codebooks", "GEOM", 20, "I", 2)
    b = minimal()
    geom = bytearray(b.find("GEOM").data)
    struct.pack_into("<II", geom, 8, 1024, 1024)
    b.find("GEOM").raw(geom)
    case("geom-more-heads-than-sections", "cannot hold the 2048 codebooks", b.build())
    b = minimal()
    b.find("GEOM").raw(b"\1\0\0\0").set(shape0=4)
    case("geom-4-bytes", "expected 1..1024", b.build())
    b = minimal()
    b.find("GEOM").raw(b.find("GEOM").data + bytes(8)).set(shape0=80)
    case("geom-80-bytes", "do not hold", b.build())
    entry_case("geom-shape", "shape[0] is 71", "GEOM", shape0=71)
    for name, message, offset, form, value in (
            ("fraction-nan", "anchor fraction", 0, "d", nan), ("fraction-2", "anchor fraction 2", 0, "d", 2.0),
            ("fraction-negative", "anchor fraction -1", 0, "d", -1.0), ("score-5", "anchor score 5", 8, "I", 5),
            ("exact-2", "exact form 2", 20, "I", 2), ("exact-fine-without", "the book has no FINE sections", 20, "I", 1),
            ("reserved", "reserved bytes", 24, "Q", 1)):
        content_case("policy-" + name, message, "POLC", offset, form, value)
    b = minimal()
    b.find("POLC").raw(b.find("POLC").data[:24]).set(shape0=24)
    case("policy-24-bytes", "24 bytes, expected 32", b.build())


def code_cases():
    for K in (0, 1, 3, 65537, 131072):
        entry_case("code-k-%d" % K, "K = %d" % K, "CODE", K=K)
    for d in (0, 3, 8, 257, SHARED):
        entry_case("code-d-%d" % d, "d = %d" % d, "CODE", d=d)
    entry_case("code-layer-outside", "layer 1, the geometry has 1", "CODE", layer=1)
    entry_case("code-layer-shared", "layer 4294967295", "CODE", layer=SHARED)
    entry_case("code-head-outside", "head 1, the layer has 1", "CODE", head=1)
    entry_case("code-kind-2", "kind 2", "CODE", kind=2)
    entry_case("code-twice", "a second one", "CODE", kind=1)
    entry_case("code-unsupported-layer", "marked unsupported", "CODE", base=full, layer=2)
    entry_case("code-first-group", "first group is 1", "CODE", first_group=1)
    entry_case("code-groups", "groups is 3", "CODE", groups=3)
    entry_case("code-dims", "dimensions is 2", "CODE", dims=2)
    entry_case("code-dims-max", "dimensions is 4294967295", "CODE", dims=SHARED)
    entry_case("code-shape", "shape[1] is 4", "CODE", shape1=4)
    entry_case("code-shape-unused", "shape[3] is 1", "CODE", shape3=1)
    entry_case("code-k-not-in-size", "another size", "CODE", K=4, shape1=4)
    entry_case("code-dtype-f32", "dtype is 2", "CODE", dtype=2)
    b = minimal()
    case("code-missing", "no CODE section for layer 0, head 0, value", b.drop("CODE", 1).add(
        b.find("META").copy().set(type=b"note")).build())
    content_case("code-nan", "group 0, centroid 1, channel 0 is not a finite", "CODE", 4, "H", 0x7E00)
    content_case("code-infinity", "group 1, centroid 1, channel 1 is not a finite", "CODE", 14, "H", 0xFC00)
    b = minimal()
    b.find("CODE").raw(bytes(16))
    case("code-all-zero", "all 2 centroids are equal", b.build())
    b = minimal()
    s = b.find("CODE", 1)
    s.raw(s.data[:8] + s.data[8:12] * 2)
    case("code-one-group-equal", "group 1: all 2 centroids are equal", b.build())
    content_case("code-equal-zeros", "group 0: all 2 centroids are equal", "CODE", 0, "Q", 0x8000000000008000)


def additive_cases():
    nan = 0x7E00
    for M in (0, SHARED):
        entry_case("additive-stages-%d" % M, "M = %d stages" % M, "CODE", base=additive, shape1=M)
    for name, message, M, K in (("stages-9", "M = 9 stages", 9, 2), ("too-many-codes", "8 stages of 8 centroids make over", 8, 8),
                                ("1-stage", "1 stage in a shape of 4 dimensions", 1, 4)):
        b = additive()
        values = b"".join(struct.pack("<e", i % 19) for i in range(2 * M * K * 4))
        b.find("CODE").raw(values).set(K=K, shape1=M, shape2=K)
        case("additive-" + name, message, b.build())
    entry_case("additive-plain-in-4-dims", "shape[3] is 0, expected 2", "CODE", dims=4)
    entry_case("additive-stages-not-in-size", "another size", "CODE", base=additive, shape1=4)
    entry_case("additive-k-3", "K = 3", "CODE", base=additive, K=3, shape2=3)
    entry_case("additive-k-is-total", "shape[2] is 4, expected 16", "CODE", base=additive, K=16)
    entry_case("additive-shape-k", "shape[2] is 8, expected 4", "CODE", base=additive, shape2=8)
    entry_case("additive-shape-d", "shape[3] is 2, expected 4", "CODE", base=additive, shape3=2)
    entry_case("additive-dims-3", "shape[1] is 2, expected 4", "CODE", base=additive, dims=3)
    content_case("additive-nan", "group 1, stage 1, centroid 3, channel 3 is not a finite", "CODE", 126, "H", nan,
                 base=additive)
    b = additive()
    s = b.find("CODE", 1)  # values: stages of 8 bytes
    s.raw(s.data[:32] + s.data[32:36] * 2 + s.data[40:])
    case("additive-stage-equal", "group 1, stage 1: all 2 centroids are equal", b.build())


def scaled_cases():
    for name, message, offset, form, value in (
            ("bits-0", "1 levels", 0, "I", 0), ("bits-9", "512 levels", 0, "I", 9), ("bits-40", "0 levels", 0, "I", 40),
            ("axis-2", "scale axis 2", 4, "I", 2), ("form-4", "scale form 4", 8, "I", 4), ("group-3", "every 3 tokens", 12, "I", 3),
            ("group-2048", "every 2048 tokens", 12, "I", 2048), ("clip-0", "clip 0", 16, "f", 0.0),
            ("clip-nan", "clip nan", 16, "f", float("nan")), ("clip-17", "clip 17", 16, "f", 17.0), ("levels-3", "3 levels in", 20, "I", 3),
            ("reserved", "reserved bytes are not zero", 28, "I", 1), ("outliers-shared", "1 outliers of a token, expected fewer than 1", 24, "I", 1),
            ("form-3", "fixed scales on axis 0 for 8 numbers", 8, "I", 3)):
        content_case("scaled-" + name, message, "SCAL", offset, form, value, base=scaled)
    content_case("scaled-outliers-rms", "1 outliers of a token, expected fewer than 1", "SCAL", 24, "I", 1, base=scaled, nth=1)
    for name, message, offset, form, value, nth in (
            ("axis", "fixed scales on axis 1", 4, "I", 1, 0), ("group", "axis 0 for 2 numbers", 12, "I", 2, 0),
            ("all", "4 outliers of a token, expected fewer than 4", 24, "I", 4, 0), ("max", "4294967295 outliers", 24, "I", 0xFFFFFFFF, 0),
            ("of-a-group", "4 outliers of a token, expected fewer than 4", 24, "I", 4, 1),
            ("offset-nan", "the offset of channel 1 is nan", 38, "H", 0x7E00, 0), ("scale-0", "the scale of channel 0 is 0", 44, "H", 0, 0),
            ("scale-negative", "the scale of channel 2 is -1", 48, "H", 0xBC00, 0), ("scale-infinite", "the scale of channel 3 is inf", 50, "H", 0x7C00, 0),
            ("not-fixed", "and then 0 bytes of fixed", 8, "I", 1, 0)):
        if name == "not-fixed":
            b = outliers()
            s = b.find("SCAL")
            s.raw(s.data[:4] + struct.pack("<III", 1, 0, 4) + s.data[16:])
            case("outliers-not-fixed", message, b.build())
            continue
        content_case("outliers-" + name, message, "SCAL", offset, form, value, base=outliers, nth=nth)
    b = outliers()
    s = b.find("SCAL")
    s.raw(s.data[:-2]).set(shape0=50)
    case("outliers-short", "2 levels in 50 bytes", b.build())
    content_case("scaled-group-of-channels", "every 3 channels", "SCAL", 12, "I", 3, base=scaled, nth=1)
    content_case("scaled-levels-equal", "level 1 is -0.75", "SCAL", 34, "H", 0xBA00, base=scaled, nth=1)
    content_case("scaled-level-nan", "level 0 is nan", "SCAL", 32, "H", 0x7E00, base=scaled, nth=1)
    b = scaled()
    s = b.find("SCAL")
    s.raw(s.data[:24]).set(shape0=24)
    case("scaled-short", "shorter than 32 bytes", b.build())
    b = scaled()
    case("scaled-beside-code", "a CODE or SCAL section already", b.add(b.find("SCAL").copy().set(kind=1)).build())
    b = scaled()
    case("scaled-missing", "no CODE or SCAL section for layer 0, head 0, value", b.drop("SCAL", 1).build())
    content_case("scaled-anchors", "anchor fraction 0.25", "POLC", 0, "d", 0.25, base=scaled)


def pool():
    return Book("pool.kvb")


def pool_cases():
    # tokens 2, spill 5, of groups of 8 tokens
    for name, message, offset, value in (
            ("tokens-0", "a pool of 0 tokens", 0, 0), ("tokens-8", "a pool of 8 tokens", 0, 8), ("tokens-max", "a pool of 4294967295 tokens", 0, 0xFFFFFFFF),
            ("spill-0", "a second pool of 0 tokens", 4, 0), ("spill-4097", "a second pool of 4097 tokens", 4, 4097), ("reserved", "the last 8 of them 0", 12, 1)):
        content_case("pool-" + name, message, "POOL", offset, "I", value, base=pool)
    b = pool()
    s = b.find("SCAL")
    data = bytearray(s.data)
    struct.pack_into("<I", data, 4, 1)   # axis
    struct.pack_into("<I", data, 12, 4)  # group
    s.raw(bytes(data))
    case("pool-of-neighbours", "beside scales on axis 1", b.build())
    b = pool()
    s = b.find("POOL")
    s.raw(bytes(16))
    case("pool-nothing", "says nothing", b.build())
    b = pool()
    s = b.find("POOL")
    s.raw(s.data[:8]).set(shape0=8)
    case("pool-cut", "expected 16 bytes", b.build())
    b = pool()
    case("pool-twice", "a second one for this head", b.add(b.find("POOL").copy()).build())
    b = pool()
    case("pool-of-values", "expected keys with a SCAL section", b.add(b.find("POOL").copy().set(kind=1)).build())
    b = additive()
    case("pool-without-scaling", "expected keys with a SCAL section", b.add(pool().find("POOL").copy()).build())


def groups_cases():
    # keys: store 1, 2 lists, 2 clips at 16, order at 24, ends at 32; values: store 1 alone
    nan = float("nan")
    for name, message, offset, form, value, nth in (
            ("store-2", "scales stored as 2", 0, "I", 2, 0), ("lists-5", "5 lists and 2 clips", 4, "I", 5, 0), ("lists-max", "4294967295 lists", 4, "I", 0xFFFFFFFF, 0),
            ("lists-1", "1 lists and 2 clips", 4, "I", 1, 0), ("clips-max", "2 lists and 4294967295 clips", 8, "I", 0xFFFFFFFF, 0),
            ("reserved", "reserved bytes are not zero", 12, "I", 1, 0), ("clip-nan", "clip nan", 20, "f", nan, 0), ("clip-0", "clip 0", 16, "f", 0.0, 0),
            ("clip-17", "clip 17", 16, "f", 17.0, 0), ("channel-4", "place 0 of the order has channel 4", 24, "H", 4, 0),
            ("channel-twice", "place 2 of the order has channel 0", 28, "H", 0, 0), ("end-0", "list 0 ends at 0", 32, "H", 0, 0),
            ("end-order", "list 1 ends at 4", 32, "H", 4, 0), ("end-last", "list 1 ends at 3", 34, "H", 3, 0), ("end-outside", "list 0 ends at 9", 32, "H", 9, 0),
            ("nothing", "says nothing", 0, "I", 0, 1)):
        content_case("groups-" + name, message, "GRPS", offset, form, value, base=groups, nth=nth)
    content_case("groups-of-neighbours", "expected up to 4 lists, with 4 on axis 1", "SCAL", 12, "I", 2, base=groups)
    content_case("groups-outliers", "and 1 outliers", "SCAL", 24, "I", 1, base=groups)
    b = groups()
    s = b.find("GRPS")
    s.raw(s.data[:12]).set(shape0=12)
    case("groups-cut", "shorter than 16 bytes", b.build())
    b = groups()
    s = b.find("GRPS")
    s.raw(s.data[:-2]).set(shape0=34)
    case("groups-short", "2 lists and 2 clips in 34 bytes", b.build())
    b = groups()
    s = b.find("GRPS", 1)
    s.raw(struct.pack("<IIII4f", 0, 0, 4, 0, 1, 1, 1, 1)).set(shape0=32)
    case("groups-clips-of-channels", "a clip of each group on axis 0", b.build())
    b = groups()
    s = b.find("GRPS", 1)
    s.raw(struct.pack("<IIII5H", 0, 1, 0, 0, 0, 1, 2, 3, 4)).set(shape0=26)
    case("groups-lists-of-channels", "on axis 0", b.build())
    b = groups()
    case("groups-twice", "a second one for this head", b.add(b.find("GRPS").copy()).build())
    b = outliers()
    case("groups-fixed", "fixed scales stored as 1", b.add(groups().find("GRPS", 1).copy().set(kind=0)).build())
    b = additive()
    case("groups-without-scaling", "no SCAL section", b.add(groups().find("GRPS", 1).copy()).build())


def fine_cases():
    b = fine()
    case("fine-missing", "no FINE section for layer 1, head 0, value", b.drop("FINE", 5).build())
    b = minimal()
    s = b.find("CODE").copy().set(type=b"FINE")
    case("fine-one-only", "no FINE section for layer 0, head 0, value", b.add(s).build())
    entry_case("fine-twice", "a second one", "FINE", base=fine, kind=1)
    entry_case("fine-k-3", "K = 3", "FINE", base=fine, K=3)
    entry_case("fine-d-3", "d = 3", "FINE", base=fine, d=3)
    entry_case("fine-groups", "groups is 3", "FINE", base=fine, groups=3)
    entry_case("fine-dtype-f32", "dtype is 2", "FINE", base=fine, dtype=2)
    entry_case("fine-shape", "shape[1] is 4", "FINE", base=fine, shape1=4)
    entry_case("fine-head-outside", "head 2, the layer has 2", "FINE", base=fine, head=2)
    entry_case("fine-layer-shared", "layer 4294967295", "FINE", base=fine, layer=SHARED)
    entry_case("fine-unsupported-layer", "marked unsupported", "FINE", base=fine, layer=2)
    content_case("fine-nan", "FINE, layer 0, head 0, key): group 0, centroid 1, channel 0 is not a finite", "FINE", 4, "H",
                 0x7E00, base=fine)
    b = fine()
    s = b.find("FINE", 1)
    s.raw(s.data[:96] + s.data[96:100] * 8)
    case("fine-one-group-equal", "FINE, layer 0, head 0, value): group 3: all 8 centroids are equal", b.build())


def transform_cases():
    nan = float("nan")
    content_case("mean-nan", "MEAN, layer 0, head 0, key): value 2", "MEAN", 8, "f", nan, base=full)
    entry_case("mean-shape", "shape[0] is 4", "MEAN", base=full, shape0=4)
    entry_case("mean-dtype", "dtype is 1", "MEAN", base=full, dtype=1)
    entry_case("mean-head-outside", "head 2, the layer has 2", "MEAN", base=full, head=2)
    b = full()
    case("mean-twice", "a second one", b.add(b.find("MEAN").copy()).build())
    content_case("transform-nan", "value 5 is", "XFRM", 20, "f", nan, base=full)
    content_case("transform-infinite", "value 127 is", "XFRM", 508, "f", float("inf"), base=full)
    content_case("transform-one-off", "do not undo each other", "XFRM", 4, "f", 0.75, base=full)
    content_case("transform-huge", "do not undo each other", "XFRM", 0, "f", 3e38, base=full)
    b = full()
    b.find("XFRM").raw(bytes(512))
    case("transform-zero", "do not undo each other", b.build())
    b = full()
    s = b.find("XFRM", 1)
    s.raw(s.data[:256] * 2)
    case("transform-not-inverse", "XFRM, layer 0, head 1, key): the transform", b.build())
    entry_case("transform-shape", "shape[0] is 1", "XFRM", base=full, shape0=1)
    b = full()
    case("transform-twice", "a second one", b.add(b.find("XFRM").copy()).build())
    for name, value in (("zero", 0.0), ("negative", -1.0), ("nan", nan), ("denormal", 1e-40)):
        content_case("rope-factor-" + name, "frequency factor 1", "ROPE", 4, "f", value, base=full)
    entry_case("rope-layer-outside", "layer 3, the geometry has 3", "ROPE", base=full, layer=3)
    entry_case("rope-no-rope", "the layer has no RoPE", "ROPE", base=full, layer=2)
    entry_case("rope-shape", "shape[0] is 4, expected 1", "ROPE", base=full, layer=1)
    b = full()
    case("rope-twice", "a second one", b.add(b.find("ROPE").copy()).build())
    content_case("quality-infinite", "infinite or negative", "qual", 0, "f", float("inf"), base=full)
    content_case("quality-negative", "infinite or negative", "qual", 28, "f", -1.0, base=full)
    entry_case("quality-shape", "shape[0] is 1", "qual", base=full, shape0=1)
    entry_case("quality-unsupported-layer", "marked unsupported", "qual", base=full, layer=2)
    b = full()
    case("quality-twice", "a second one", b.add(b.find("qual").copy()).build())


def newer_minor():
    """A book of a version to come: longer header and entries, a compatible flag, optional sections nobody knows."""
    b = full()
    b.minor, b.header_size, b.entry_size = 7, 136, 112
    b.header = {"compatible": 0x80000001, "reserved": 0x1122334455667788}
    b.find("META").set(reserved=77)
    for name, codec, dtype in ((b"hist", 0, 0), (b"xTr4", 9, 9)):
        extra = b.find("META").copy().raw(b"whatever").set(type=name, codec=codec, dtype=dtype, raw_size=8)
        b.add(extra)
    return b.build()


def main():
    shell_cases()
    header_cases()
    entry_cases()
    meta_cases()
    zlib_cases()
    geometry_cases()
    code_cases()
    additive_cases()
    scaled_cases()
    groups_cases()
    pool_cases()
    fine_cases()
    transform_cases()
    names = [c[0] for c in CASES]
    if len(set(names)) != len(names):
        sys.exit("forge.py: a name twice")
    for old in os.listdir(HERE):
        if old.endswith(".kvb"):
            os.remove(os.path.join(HERE, old))
    with open(os.path.join(HERE, "expected.txt"), "w") as table:
        table.write("# file, status, part of the message or of the place. Made by `make golden`.\n")
        for name, status, message, image in CASES:
            with open(os.path.join(HERE, name + ".kvb"), "wb") as f:
                f.write(image)
            table.write("%s.kvb\t%d\t%s\n" % (name, status, message))
    with open(os.path.join(GOLDEN, "newer-minor.kvb"), "wb") as f:
        f.write(newer_minor())


if __name__ == "__main__":
    main()
