#!/usr/bin/env python3
"""rewrite_quality.py IN.kvb OUT.kvb TRAIN HELDOUT USAGE: the same book, whole and sealed, whose first quality record
(spec/kvb-1.md, section `qual`) says something else. For tests of `kvbook verify`."""
import hashlib
import struct
import sys
import zlib

data = bytearray(open(sys.argv[1], "rb").read())
values = [float(v) for v in sys.argv[3:6]]
table, = struct.unpack_from("<Q", data, 32)
count, size = struct.unpack_from("<II", data, 40)
for at in range(table, table + count * size, size):
    if data[at:at + 4] == b"qual":
        break
else:
    sys.exit("no quality section")
codec, = struct.unpack_from("<H", data, at + 4)
offset, stored, raw = struct.unpack_from("<QQQ", data, at + 56)
section = bytearray(data[offset:offset + stored])
if codec == 1:
    section = bytearray(zlib.decompress(bytes(section)))
assert len(section) == raw <= 256  # as many bytes fit where the stored ones were, sections being 256-byte aligned
struct.pack_into("<3f", section, 0, *values)
last = offset + stored == len(data)
data[offset:offset + max(stored, raw)] = section.ljust(max(stored, raw), b"\0")
if last:
    del data[offset + raw:]
struct.pack_into("<H", data, at + 4, 0)
struct.pack_into("<QQ", data, at + 64, raw, raw)
struct.pack_into("<II", data, at + 80, zlib.crc32(section), zlib.crc32(section))
struct.pack_into("<Q", data, 16, len(data))
entries = bytes(data[table:table + count * size])
struct.pack_into("<I", data, 52, zlib.crc32(entries))
data[56:88] = hashlib.sha256(entries).digest()
header, = struct.unpack_from("<I", data, 12)
struct.pack_into("<I", data, header - 4, zlib.crc32(bytes(data[:header - 4])))
open(sys.argv[2], "wb").write(data)
