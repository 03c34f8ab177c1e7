#!/usr/bin/env python3
"""Writes tests/golden/dequant.bin: blocks of every tensor type that kvbook reads and what they mean in float32,
according to the PyPI package "gguf" (which needs numpy). From the repository's root:

    pip install gguf numpy && tests/support/make_dequant_golden.py tests/golden/dequant.bin

For each type, little-endian: u32 type number, u32 bytes of blocks, u32 elements, the blocks, the float32 values.
"""
import struct
import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize

# Where a block keeps its half-float scales; all other bytes are random.
HALVES = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q4_K: [0, 2], T.Q5_K: [0, 2],
          T.Q6_K: [208]}
BLOCKS = {T.F32: 16, T.F16: 64, T.BF16: 64, T.Q4_K: 3, T.Q5_K: 3, T.Q6_K: 3}


def make_blocks(kind, rng):
    """Random blocks; scales of many sizes, a subnormal and a negative one among them."""
    count = BLOCKS.get(kind, 4)
    if kind == T.F32:
        return rng.standard_normal(count).astype("<f4").view(np.uint8)
    if kind == T.F16:
        values = (rng.standard_normal(count) * 10.0 ** rng.integers(-8, 4, count)).astype("<f2")
        return values.view(np.uint8)
    if kind == T.BF16:
        values = (rng.standard_normal(count) * 10.0 ** rng.integers(-30, 30, count)).astype("<f4")
        return (values.view("<u4") >> 16).astype("<u2").view(np.uint8)
    size = GGML_QUANT_SIZES[kind][1]
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for at in HALVES[kind]:
        scales = (rng.standard_normal(count) * 10.0 ** rng.integers(-3, 1, count)).astype("<f2")
        scales[0], scales[1] = 3e-6, -0.25
        blocks[:, at:at + 2] = scales.view(np.uint8).reshape(count, 2)
    return blocks.reshape(-1)


def main(path):
    rng = np.random.default_rng(20250607)
    kinds = [T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q4_K, T.Q5_K, T.Q6_K]
    with open(path, "wb") as out:
        for kind in kinds:
            blocks = make_blocks(kind, rng)
            if kind in (T.F32, T.F16):  # the package hands these out as they are
                values = blocks.view("<f4" if kind == T.F32 else "<f2").astype("<f4")
            else:
                values = dequantize(blocks, kind).astype("<f4").reshape(-1)
            out.write(struct.pack("<III", int(kind), blocks.size, values.size))
            out.write(blocks.tobytes())
            out.write(values.tobytes())


if __name__ == "__main__":
    main(sys.argv[1])
