#!/usr/bin/env python3
"""Writes Jane Austen's novels, which Debian's r-cran-janeaustenr carries (public domain), as UTF-8 text files.

    austen_text.py FOLDER OUT     FOLDER holds Rdata.rdx and Rdata.rdb; OUT gets one .txt a novel

The two files are an R "lazy-load database": the .rdx is an index (name -> offset, length) and the .rdb the objects, each
a zlib stream after its length. Both hold R's XDR serialisation, of which the few types that occur are read here, so that
no R is needed. See "R Internals", section 1.8 (serialization formats) and src/library/base/R/lazyload.R of R.
"""
import os
import struct
import sys
import zlib

NIL, PAIRS, SYMBOL, STRING, LOGICAL, INTEGER, REAL, STRINGS, LIST = 254, 2, 1, 9, 10, 13, 14, 16, 19
REFERENCE, MISSING, GLOBAL, BASE_NAMESPACE = 255, 251, 253, 247


class Reader:
    """Reads one object from R's XDR serialisation, versions 2 and 3."""

    def __init__(self, data):
        self.data, self.at, self.references = data, 0, []
        if self.take(2) != b"X\n":
            raise ValueError("not R's XDR serialisation (expected it to start with 'X\\n')")
        version = self.integer()
        self.take(8)  # the versions of R that wrote it and that can read it
        if version == 3:
            self.take(self.integer())  # the native encoding's name
        elif version != 2:
            raise ValueError("serialisation version %d, expected 2 or 3" % version)

    def take(self, count):
        if count < 0 or self.at + count > len(self.data):
            raise ValueError("truncated at byte %d" % self.at)
        self.at += count
        return self.data[self.at - count:self.at]

    def integer(self):
        return struct.unpack(">i", self.take(4))[0]

    def pairs(self, flags):
        """A pairlist as a list of (tag, value); attributes of its cells are read and dropped."""
        cells = []
        while flags & 255 == PAIRS:
            if flags & 0x200:
                self.value()
            tag = self.value() if flags & 0x400 else None
            cells.append((tag, self.value()))
            flags = self.integer()
        if flags & 255 != NIL:
            raise ValueError("a pairlist that ends in type %d" % (flags & 255))
        return cells

    def value(self):
        flags = self.integer()
        kind = flags & 255
        if kind in (NIL, MISSING, GLOBAL, BASE_NAMESPACE):
            return None
        if kind == PAIRS:
            return self.pairs(flags)
        if kind == SYMBOL:
            self.references.append(self.value())
            return self.references[-1]
        if kind == REFERENCE:
            index = flags >> 8 or self.integer()
            return self.references[index - 1]
        if kind == STRING:
            size = self.integer()
            return None if size == -1 else self.take(size).decode("latin-1" if flags & (4 << 12) else "utf-8")
        count = self.integer()
        if kind in (LOGICAL, INTEGER):
            items = list(struct.unpack(">%di" % count, self.take(4 * count)))
        elif kind == REAL:
            items = list(struct.unpack(">%dd" % count, self.take(8 * count)))
        elif kind in (STRINGS, LIST):
            items = [self.value() for _ in range(count)]
        else:
            raise ValueError("R type %d at byte %d is not one that this package uses" % (kind, self.at))
        names = dict(self.value()) if flags & 0x200 else {}
        return dict(zip(names["names"], items)) if "names" in names else items


def objects(folder):
    """Yields (name, object) of a lazy-load database."""
    with open(os.path.join(folder, "Rdata.rdx"), "rb") as file:
        index = Reader(zlib.decompress(file.read(), 47)).value()
    with open(os.path.join(folder, "Rdata.rdb"), "rb") as file:
        data = file.read()
    for name, (offset, size) in sorted(index["variables"].items()):
        yield name, Reader(unpack(data[offset:offset + size], index["compressed"][0])).value()


def unpack(chunk, compressed):
    """One object's bytes: length, big-endian, then zlib; kinds 2 and 3 name bzip2, xz or nothing in one more byte."""
    size, body = struct.unpack(">I", chunk[:4])[0], chunk[4:]
    if compressed in (2, 3):
        import bz2
        import lzma
        kind, body = body[:1], body[1:]
        raw = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6}])
        body = {b"0": bytes, b"2": bz2.decompress, b"Z": raw.decompress}.get(kind, zlib.decompress)(body)
    else:
        body = zlib.decompress(body)
    if len(body) != size:
        raise ValueError("an object of %d bytes, its header says %d" % (len(body), size))
    return body


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder, out = sys.argv[1:]
    os.makedirs(out, exist_ok=True)
    written = 0
    for name, lines in objects(folder):
        if not isinstance(lines, list) or len(lines) < 1000 or not all(isinstance(line, str) for line in lines):
            continue  # not a novel
        text = ("\n".join(lines) + "\n").encode("utf-8")
        path = os.path.join(out, name + ".txt")
        with open(path + ".tmp", "wb") as file:
            file.write(text)
        os.replace(path + ".tmp", path)
        print("%s %d bytes" % (path, len(text)))
        written += 1
    if written == 0:
        sys.exit("austen_text.py: %s holds no novel" % folder)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, zlib.error) as error:
        sys.exit("austen_text.py: %s" % error)
