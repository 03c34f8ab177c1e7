#!/usr/bin/env python3
"""What it costs a CPU to turn a page of half floats into codes and back: bench/convert_page.py BOOK.kvb [TOKENS]

Needs the Python package (or KVBOOK_LIBRARY_DIR and PYTHONPATH). One layer, all KV heads, keys and values; medians of rounds. Encoding
makes its search structures anew on each call, as kvb_encode() does."""
import statistics
import sys
import time

import numpy as np

import kvbook


def median_us(work, rounds=15):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(1e6 * (time.perf_counter() - start))
    return statistics.median(times)


def main():
    book = kvbook.Book(sys.argv[1])
    tokens = int(sys.argv[2]) if len(sys.argv) > 2 else 256
    layer = book.layers[0]
    books = [book.codebook(0, h, kind) for h in range(layer.kv_heads) for kind in ("key", "value")]
    rng = np.random.default_rng(1)
    # Points like those that the book was trained on: sums of centroids and noise.
    pages = []
    for b in books:
        codes = rng.integers(0, b.centroids, (tokens, b.groups), dtype=np.uint32)
        pages.append(b.decode(codes) + 0.1 * rng.standard_normal((tokens, layer.head_dim)).astype(np.float32))
    coded = [b.encode(x) for b, x in zip(books, pages)]
    into = median_us(lambda: [b.encode(x) for b, x in zip(books, pages)])
    back = median_us(lambda: [b.decode(x) for b, x in zip(books, coded)])
    half = 2 * 2 * layer.kv_heads * layer.head_dim * tokens
    bits = sum(b.groups * b.code_bits for b in books) * tokens // 8
    print(f"{sys.argv[1].rsplit('/', 1)[-1]}: a page of {tokens} tokens, one layer, {layer.kv_heads} KV heads of {layer.head_dim}, "
          f"{half} bytes as half floats, {bits} as codes")
    print(f"encode {into:.0f} us ({into / tokens:.2f} us a token), decode {back:.0f} us ({back / tokens:.2f} us a token)")


if __name__ == "__main__":
    main()
