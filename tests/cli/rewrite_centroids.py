#!/usr/bin/env python3
"""rewrite_centroids.py IN.kvb OUT.kvb N [BLOCK]: the same book, whole and sealed, of whose first group of centroids (or of
whose group or stage BLOCK, from 0) all after the first N repeat the first; with N "reversed" they stand in the other order. For tests
of `kvbook verify` and `kvbook diff`."""
import hashlib
import struct
import sys
import zlib

data = bytearray(open(sys.argv[1], "rb").read())
table, = struct.unpack_from("<Q", data, 32)
count, size = struct.unpack_from("<II", data, 40)
at = next(at for at in range(table, table + count * size, size) if data[at:at + 4] == b"CODE")
channels, centroids = struct.unpack_from("<II", data, at + 28)
offset, stored = struct.unpack_from("<QQ", data, at + 56)
row = 2 * channels
offset += row * centroids * (int(sys.argv[4]) if len(sys.argv) > 4 else 0)
rows = [bytes(data[offset + k * row:offset + (k + 1) * row]) for k in range(centroids)]
rows = rows[::-1] if sys.argv[3] == "reversed" else rows[:int(sys.argv[3])] + rows[:1] * (centroids - int(sys.argv[3]))
data[offset:offset + row * centroids] = b"".join(rows)
offset, = struct.unpack_from("<Q", data, at + 56)
crc = zlib.crc32(bytes(data[offset:offset + stored]))
struct.pack_into("<II", data, at + 80, crc, crc)
entries = bytes(data[table:table + count * size])
struct.pack_into("<I", data, 52, zlib.crc32(entries))
data[56:88] = hashlib.sha256(entries).digest()
struct.pack_into("<I", data, table - 4, zlib.crc32(bytes(data[:table - 4])))
open(sys.argv[2], "wb").write(data)
