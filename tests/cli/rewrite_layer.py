#!/usr/bin/env python3
"""rewrite_layer.py IN.kvb OUT.kvb [heads=N] [kv_heads=N] [head_dim=N] [style=N] [base=X] [scale=X]: the same book,
whole and sealed, whose last layer is of kind unsupported (spec/kvb-1.md) and has no codebooks, with fields of its geometry
changed. For tests of what a model refuses."""
import hashlib
import struct
import sys
import zlib

FIELDS = {"heads": ("<I", 0), "kv_heads": ("<I", 4), "head_dim": ("<I", 8), "style": ("<I", 28), "base": ("<d", 40),
          "scale": ("<d", 48)}
data = open(sys.argv[1], "rb").read()
table, = struct.unpack_from("<Q", data, 32)
count, size = struct.unpack_from("<II", data, 40)
sections = []
for at in range(table, table + count * size, size):
    entry = bytearray(data[at:at + size])
    offset, stored = struct.unpack_from("<QQ", entry, 56)
    sections.append((entry, bytearray(data[offset:offset + stored])))
geometry, body = next(s for s in sections if s[0][:4] == b"GEOM")
layers, record = struct.unpack_from("<II", body)
at = 8 + (layers - 1) * record
struct.pack_into("<II", body, at + 12, 2, 0)
for change in sys.argv[3:]:
    name, value = change.split("=")
    form, place = FIELDS[name]
    struct.pack_into(form, body, at + place, float(value) if form == "<d" else int(value))
struct.pack_into("<II", geometry, 80, zlib.crc32(body), zlib.crc32(body))
sections = [s for s in sections if s[0][:4] == b"ROPE" or struct.unpack_from("<I", s[0], 12)[0] != layers - 1]

end = table + len(sections) * size
content = b""
for entry, body in sections:
    content += bytes(-(end + len(content)) % 256)
    struct.pack_into("<Q", entry, 56, end + len(content))
    content += body
entries = b"".join(bytes(entry) for entry, _ in sections)
header = bytearray(data[:table])
struct.pack_into("<Q", header, 16, end + len(content))
struct.pack_into("<I", header, 40, len(sections))
struct.pack_into("<I", header, 52, zlib.crc32(entries))
header[56:88] = hashlib.sha256(entries).digest()
struct.pack_into("<I", header, table - 4, zlib.crc32(bytes(header[:table - 4])))
open(sys.argv[2], "wb").write(header + entries + content)
