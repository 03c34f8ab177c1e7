#!/usr/bin/env python3
"""Compare captures: compare_captures.py A.kvc B.kvc: how far two captures of the same text lie apart, per tensor, over all layers.

Relative error is |a - b| / |b| by norms; the worst layer is named. Needs the kvbook package (numpy)."""
import sys

import numpy as np

import kvbook


def main():
    a, b = kvbook.Capture(sys.argv[1]), kvbook.Capture(sys.argv[2])
    if a.geometry != b.geometry:
        sys.exit("the geometries differ: %r, %r" % (a.geometry[0], b.geometry[0]))
    for row in ("row_chunk", "row_position"):
        if not np.array_equal(a.tensors[row], b.tensors[row]):
            sys.exit(row + " differs")
    for name in ("keys", "values", "weight_k", "weight_v"):
        errors = []
        for i in range(len(a.geometry)):
            x, y = (c.tensors[f"layers.{i}.{name}"].astype(np.float64) for c in (a, b))
            errors.append(np.linalg.norm(x - y) / np.linalg.norm(y))
        worst = int(np.argmax(errors))
        print(f"{name}: relative error first layer {errors[0]:.4f}, median {np.median(errors):.4f}, worst {errors[worst]:.4f} (layer {worst})")


if __name__ == "__main__":
    main()
