"""Weighted k-means for many small problems at once, as kvbook trains its codebooks."""
from __future__ import annotations

import ctypes as c
from typing import NamedTuple, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._library import CKmeansOptions, CKmeansResult, CProblem, Error, Status, call, trainer

_SEEDINGS = ("plusplus", "random", "split")


class KmeansResult(NamedTuple):
    """One problem's result: `table` [K, d] and the numbers of kvb_kmeans_result in kvbook/kmeans.h."""
    table: NDArray[np.float32]
    train_error: float
    heldout_error: float
    variance: float
    heldout_variance: float
    iterations: int
    repairs: int
    used: int
    entropy: float
    swaps: int
    points_per_centroid: float


def _rows(points: ArrayLike) -> NDArray[np.generic]:
    """float32 or float16 rows in place where they stand with a stride, else a copy."""
    x = np.asarray(points)
    if x.dtype not in (np.float32, np.float16):
        x = x.astype(np.float32)
    if x.ndim != 2:
        raise Error(Status.USAGE, "points", f"shape {x.shape}, expected (n, d)")
    size = x.itemsize
    if x.strides[1] != size or x.strides[0] < size * x.shape[1] or x.strides[0] % size:
        x = np.ascontiguousarray(x)
    return x


def kmeans(points: Sequence[ArrayLike], centroids: int, *, weights: Sequence[ArrayLike] | None = None, seed: int = 0,
           iterations: int = 15, seeding: str = "plusplus", holdout_every: int = 0,
           threads: int = 0) -> list[KmeansResult]:
    """Minimises sum_i w_i ||x_i - c_a(i)||^2 for each problem of a batch.

    Parameters
    ----------
    points : sequence of array_like, each [n, d]
        float32 or float16 is read in place, also as a slice of channels `x[:, 4:8]`; d is 1 to 64.
    centroids : int
        K, at most each n.
    weights : sequence of array_like, each [n], optional
        Finite, not negative, not all zero.
    seed : int
        Problem i uses the stream seed + i. The result does not depend on `threads`.
    iterations : int
    seeding : {"plusplus", "random", "split"}
    holdout_every : int
        Hold out one block of 256 points in every so many; 0: none, and `heldout_error` is NaN.
    threads : int
        0: OpenMP's default.

    Returns
    -------
    list of KmeansResult

    Raises
    ------
    Error
        USAGE for sizes out of range, CHECK for NaN, infinity or a negative weight; problem and row are named.
    """
    if seeding not in _SEEDINGS:
        raise Error(Status.USAGE, "seeding", f"{seeding!r}, expected one of {', '.join(_SEEDINGS)}")
    for name, number in (("centroids", centroids), ("iterations", iterations), ("holdout_every", holdout_every),
                         ("threads", threads)):
        if not 0 <= number < 2**32:
            raise Error(Status.USAGE, name, f"{number}, expected 0 to {2**32 - 1}")
    if weights is not None and len(weights) != len(points):
        raise Error(Status.USAGE, "weights", f"{len(weights)} arrays for {len(points)} problems")
    problems, results = (CProblem * len(points))(), (CKmeansResult * len(points))()
    kept = []  # what the problems point to
    tables = []
    for i, given in enumerate(points):
        x = _rows(given)
        w = None if weights is None else np.ascontiguousarray(weights[i], dtype=np.float32)
        if w is not None and w.shape != (len(x),):
            raise Error(Status.USAGE, f"weights[{i}]", f"shape {w.shape}, expected ({len(x)},)")
        if centroids > len(x):  # before a table of that size is made
            raise Error(Status.USAGE, f"points[{i}]", f"{len(x)} points for {centroids} centroids; expected as many "
                        "points at least")
        table = np.empty((centroids, x.shape[1]), np.float32)
        kept.append((x, w))
        tables.append(table)
        problems[i] = CProblem(x.ctypes.data, int(x.dtype == np.float16), len(x), x.strides[0] // x.itemsize,
                               x.shape[1], centroids, None if w is None else w.ctypes.data, None,
                               (seed + i) % 2**64, table.ctypes.data)
    options = CKmeansOptions()
    trainer.kvb_kmeans_options_init(c.byref(options))
    options.iterations, options.seeding = iterations, _SEEDINGS.index(seeding)
    options.holdout_every, options.threads = holdout_every, threads
    call(trainer.kvb_kmeans_train, problems, len(points), c.byref(options), results)
    return [KmeansResult(table, *(getattr(r, name) for name in KmeansResult._fields[1:]))
            for table, r in zip(tables, results)]
