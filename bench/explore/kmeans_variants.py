#!/usr/bin/env python3
"""What k-means could still gain, on rows of a real capture: exact pruning, mini-batches, gain-shape codes.

    pip install numpy && python3 bench/explore/kmeans_variants.py CAPTURE.kvc

Keys and values of head 0, group 2, of three layers, with the capture's weights; every 16th block of 256 rows held out.
NumPy on one thread: counts and errors are of interest, not seconds.
"""
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from kmeans_quality import load  # noqa: E402


def split(x, w):
    held = (np.arange(len(x)) // 256) % 16 == 15
    x = x.astype(np.float32)
    return (x[~held], w[~held].astype(np.float64)), (x[held], w[held].astype(np.float64))


def nearest(x, c, second=False):
    """Index and squared distance of the nearest centroid, and the second distance."""
    index = np.empty(len(x), np.int64)
    least = np.empty(len(x))
    after = np.empty(len(x))
    for at in range(0, len(x), 8192):
        part = x[at:at + 8192]
        d = (c * c).sum(1) - 2 * part @ c.T + (part * part).sum(1)[:, None]
        i = d.argmin(1)
        index[at:at + 8192], least[at:at + 8192] = i, np.maximum(d[np.arange(len(part)), i], 0)
        if second:
            d[np.arange(len(part)), i] = np.inf
            after[at:at + 8192] = d.min(1)
    return (index, least, after) if second else (index, least)


def means(x, w, index, c):
    total = np.bincount(index, w, len(c))
    new = np.stack([np.bincount(index, w * x[:, j], len(c)) for j in range(x.shape[1])], 1)
    return np.where(total[:, None] > 0, new / np.maximum(total, 1e-300)[:, None], c).astype(np.float32)


def seed(x, w, k, rng):
    c = [x[rng.choice(len(x), p=w / w.sum())]]
    least = ((x - c[0]) ** 2).sum(1)
    for _ in range(k - 1):
        p = least * w
        c.append(x[rng.choice(len(x), p=p / p.sum())])
        least = np.minimum(least, ((x - c[-1]) ** 2).sum(1))
    return np.array(c)


def error(x, w, c):
    centre = (w[:, None] * x).sum(0) / w.sum()
    return (w * nearest(x, c)[1]).sum() / (w * ((x - centre) ** 2).sum(1)).sum()


def lloyd(x, w, c, rounds):
    for _ in range(rounds):
        c = means(x, w, nearest(x, c)[0], c)
    return c


def pruning(x, w, k, rounds, rng):
    """Shares that Hamerly's bounds let pass without looking at a centroid: points, and whole runs of 16 and 48 points."""
    c = seed(x, w, k, rng)
    index, least, after = nearest(x, c, True)
    upper, lower = np.sqrt(least), np.sqrt(np.maximum(after, 0))
    saved = []
    for _ in range(rounds - 1):
        new = means(x, w, index, c)
        moved = np.sqrt(((new - c) ** 2).sum(1))
        c = new
        between = np.sqrt(np.maximum((c * c).sum(1)[:, None] + (c * c).sum(1) - 2 * c @ c.T, 0))
        np.fill_diagonal(between, np.inf)
        half = between.min(1) / 2
        upper += moved[index]
        lower -= moved.max()
        safe = upper <= np.maximum(lower, half[index])
        # the bound made tight: one distance
        exact = np.sqrt(((x - c[index]) ** 2).sum(1))
        safe |= exact <= np.maximum(lower, half[index])
        saved.append([safe.mean()] + [safe[:len(safe) // t * t].reshape(-1, t).all(1).mean() for t in (16, 48)])
        i, l, a = nearest(x, c, True)
        upper = np.where(safe, exact, np.sqrt(l))
        lower = np.where(safe, lower, np.sqrt(np.maximum(a, 0)))
        index = i
    return np.mean(saved, 0), saved[-1]


def minibatch(x, w, c, batch, rounds, rng):
    """Sculley's: each centroid moves to the weighted mean of all rows that it was given so far."""
    total = np.zeros(len(c))
    for _ in range(rounds * len(x) // batch):
        pick = rng.integers(0, len(x), batch)
        index = nearest(x[pick], c)[0]
        gain = np.bincount(index, w[pick], len(c))
        sums = np.stack([np.bincount(index, w[pick] * x[pick, j], len(c)) for j in range(x.shape[1])], 1)
        total += gain
        hit = gain > 0
        c = c.copy()
        c[hit] += ((sums[hit] - gain[hit, None] * c[hit]) / total[hit, None]).astype(np.float32)
    return c


def gain_shape(train, held, gains, shapes, rounds, rng):
    """Directions by weighted spherical k-means, gains by weighted 1-D k-means of x.u; the mean is removed first."""
    (x, w), (y, v) = train, held
    centre = (w[:, None] * x).sum(0) / w.sum()
    x, y = x - centre.astype(np.float32), y - centre.astype(np.float32)
    size = np.maximum(np.sqrt((x * x).sum(1)), 1e-20)
    unit = (x / size[:, None]).astype(np.float32)
    u = unit[rng.choice(len(x), shapes, False)]
    for _ in range(rounds):
        index = (unit @ u.T).argmax(1)
        s = np.stack([np.bincount(index, w * size * x[:, j], shapes) for j in range(x.shape[1])], 1)
        u = np.where((s * s).sum(1, keepdims=True) > 0, s / np.maximum(np.sqrt((s * s).sum(1, keepdims=True)), 1e-30), u)
        u = u.astype(np.float32)
    best = (x @ u.T).max(1)
    g = np.sort(np.quantile(best, (np.arange(gains) + .5) / gains))[:, None].astype(np.float32)
    g = lloyd(best[:, None].astype(np.float32), w, g, rounds)
    total = 0.0
    table = (g[:, None, :] * u[None]).reshape(-1, x.shape[1]).astype(np.float32)
    total = (v * nearest(y, table)[1]).sum()
    centre = (v[:, None] * y).sum(0) / v.sum()
    return total / (v * ((y - centre) ** 2).sum(1)).sum()


def main():
    jobs = [split(x, w) for x, w in load(sys.argv[1], 3)]
    print("exact pruning by Hamerly's bounds, mean over 20 iterations (last): share of points, of runs of 16, of runs of 48")
    for n, k in ((16384, 256), (len(jobs[0][0][0]), 256), (16384, 16)):
        shares = [pruning(x[:n], w[:n], k, 20, np.random.default_rng(1)) for (x, w), _ in jobs]
        m, last = np.mean([s[0] for s in shares], 0), np.mean([s[1] for s in shares], 0)
        print(f"  n {n:6d} K {k:4d} " + "  ".join(f"{100 * a:5.1f} % ({100 * b:5.1f})" for a, b in zip(m, last)))
    print("held-out weighted error / variance, d = 8, K = 256, means over", len(jobs), "problems")
    rows = {}
    for (train, held) in jobs:
        rng = np.random.default_rng(2)
        c = seed(*train, 256, rng)
        rows.setdefault("Lloyd, 15 iterations from k-means++", []).append(error(*held, lloyd(*train, c, 15)))
        for batch, rounds in ((4096, 15), (4096, 5), (1024, 5)):
            rows.setdefault(f"mini-batches of {batch}, {rounds} passes", []).append(
                error(*held, minibatch(*train, c, batch, rounds, rng)))
        rows.setdefault("5 passes of 4096, then 5 of Lloyd", []).append(
            error(*held, lloyd(*train, minibatch(*train, c, 4096, 5, rng), 5)))
        for gains, shapes in ((2, 128), (4, 64), (8, 32)):
            rows.setdefault(f"gain-shape, {gains} gains x {shapes} directions", []).append(
                gain_shape(train, held, gains, shapes, 15, rng))
    for name, errors in rows.items():
        print(f"  {name:40} {np.mean(errors):.5f}")


if __name__ == "__main__":
    main()
