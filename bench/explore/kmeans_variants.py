#!/usr/bin/env python3
"""What k-means could still gain, on rows of a real capture: exact pruning, mini-batches, gain-shape codes and scales.

    pip install numpy && make && python3 bench/explore/kmeans_variants.py CAPTURE.kvc [--layers 3] [--rows N] [--part prune ...]

Keys and values of head 0, group 2 of evenly spread layers, with the capture's weights; every 16th block of 256 rows held
out. Every method starts from the library's own greedy k-means++ and one iteration. NumPy on one thread: counts and errors
are exact, seconds only compare methods of this script with each other.
"""
import argparse
import ctypes
import os
import pathlib
import sys
import tempfile
import time

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[name] = "1"
import numpy as np  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import kmeans_quality as quality  # noqa: E402

ROUNDS, GROUP, SORT_AFTER = 20, 16, 3


def held_out(n):
    return (np.arange(n) // 256) % 16 == 15


def library_table(lib, x, w, k, iterations, swaps, seed=0):
    """[K][d] as the library trains it on all of x; no rows are held out here."""
    x, w = np.ascontiguousarray(x, np.float32), np.ascontiguousarray(w, np.float32)
    table = np.empty((k, x.shape[1]), np.float32)
    problem = quality.Problem(x.ctypes.data, 0, len(x), x.shape[1], x.shape[1], k, w.ctypes.data, None, seed,
                              table.ctypes.data)
    options = quality.Options()
    lib.kvb_kmeans_options_init_sized(ctypes.byref(options), ctypes.c_size_t(ctypes.sizeof(options)))
    options.iterations, options.swap_rounds, options.threads = iterations, swaps, 1
    status = lib.kvb_kmeans_train(ctypes.byref(problem), ctypes.c_size_t(1), ctypes.byref(options), None, None)
    assert status == 0, status
    return table


def blocks(n, size=8192):
    return (slice(at, min(n, at + size)) for at in range(0, n, size))


def squared(x, c):
    d = x @ (-2 * c.T)
    d += (c * c).sum(1)
    d += (x * x).sum(1)[:, None]
    return np.maximum(d, 0, out=d)


def nearest(x, c):
    index, least = np.empty(len(x), np.int64), np.empty(len(x), np.float32)
    for s in blocks(len(x)):
        d = squared(x[s], c)
        index[s] = d.argmin(1)
        least[s] = d[np.arange(len(d)), index[s]]
    return index, least


def sums(x, w, index, k):
    return np.bincount(index, w, k), np.stack([np.bincount(index, w * x[:, j], k) for j in range(x.shape[1])], 1)


def means(x, w, index, c):
    mass, total = sums(x, w, index, len(c))
    return np.where(mass[:, None] > 0, total / np.maximum(mass, 1e-300)[:, None], c).astype(np.float32)


def lloyd(x, w, c, rounds):
    for _ in range(rounds):
        c = means(x, w, nearest(x, c)[0], c)
    return c


def relative(x, w, least):
    """Error over the variance about these rows' own mean; the library takes the training rows' mean for held-out ones."""
    return (w * least).sum() / (w * ((x - np.average(x, 0, w)) ** 2).sum(1)).sum()


# ---- exact pruning ----

def balanced_groups(c, rows):
    """Runs of GROUP near centroids: halved along the widest axis until they are small enough."""
    if len(rows) <= GROUP:
        return [rows]
    part = c[rows] - c[rows].mean(0)
    order = rows[np.argsort(part @ np.linalg.eigh(part.T @ part)[1][:, -1], kind="stable")]
    return balanced_groups(c, order[:len(rows) // 2]) + balanced_groups(c, order[len(rows) // 2:])


class Bounds:
    """Yinyang's bounds, searched in tiles: one point that needs a group makes its tile scan it, for all its points. With
    one group of all centroids, and half the way to the nearest other centroid, they are Hamerly's."""

    def __init__(self, group_of, tile, hamerly):
        self.group_of, self.tile, self.hamerly, self.share = group_of, tile, hamerly, []
        self.groups = group_of.max() + 1
        self.lower = None

    def step(self, own, own_now, index, least, group_least, moved, half, order):
        """own: last codes, own_now: distances to them now; group_least: [n][groups] without the new code's centroid."""
        if self.lower is None:
            self.lower = group_least.copy()
            self.share.append(1.0)
            return
        drift = np.zeros(self.groups, np.float32)
        np.maximum.at(drift, self.group_of, moved)
        self.lower -= drift
        limit = np.maximum(self.lower, half[own][:, None]) if self.hamerly else self.lower
        needs = (own_now[:, None] > limit)[order]
        whole = len(needs) // self.tile * self.tile
        tiles = needs[:whole].reshape(-1, self.tile, self.groups).any(1)
        needs = np.concatenate([np.repeat(tiles, self.tile, 0), needs[whole:]])
        scanned = np.empty_like(needs)
        scanned[order] = needs
        changed = np.flatnonzero(index != own)
        wrong = ~scanned[changed, self.group_of[index[changed]]]
        assert (least[changed][wrong] > own_now[changed][wrong] * (1 - 1e-3)).all(), "a bound was wrong"
        left = (changed, self.group_of[own[changed]])
        self.lower[left] = np.minimum(self.lower[left], own_now[changed])
        np.copyto(self.lower, group_least, where=scanned)
        self.share.append(scanned.mean())


def prune(x, w, c):
    """{(bounds, tiles): share scanned in each of ROUNDS iterations}, and the last iteration that changed a code."""
    mean, k = np.average(x, 0, w).astype(np.float32), len(c)
    x, c = x - mean, c - mean
    lists = balanced_groups(c, np.arange(k))
    yinyang = np.empty(k, np.int64)
    for g, rows in enumerate(lists):
        yinyang[rows] = g
    order = np.arange(len(x))
    kinds = {"Hamerly": (np.zeros(k, np.int64), True), "Yinyang": (yinyang, False)}
    state = {(name, tile, False): Bounds(kind[0], tile, kind[1]) for name, kind in kinds.items() for tile in (1, 16, 48)}
    index = None
    last = 0
    for r in range(ROUNDS):
        own, own_now = index, None
        index, least = np.empty(len(x), np.int64), np.empty(len(x), np.float32)
        by_group = {name: np.empty((len(x), kind[0].max() + 1), np.float32) for name, kind in kinds.items()}
        own_now = np.empty(len(x), np.float32)
        for s in blocks(len(x)):
            d = np.sqrt(squared(x[s], c))
            rows = np.arange(len(d))
            index[s] = d.argmin(1)
            least[s] = d[rows, index[s]]
            if own is not None:
                own_now[s] = d[rows, own[s]]
            d[rows, index[s]] = np.inf
            by_group["Yinyang"][s] = np.stack([d[:, g].min(1) for g in lists], 1)
            by_group["Hamerly"][s] = by_group["Yinyang"][s].min(1)[:, None]
        if own is None or (own != index).any():
            last = r + 1
        if r == SORT_AFTER:
            order = np.argsort(own, kind="stable")
            for name, kind in kinds.items():
                for tile in (16, 48):
                    state[name, tile, True] = Bounds(kind[0], tile, kind[1])
                    state[name, tile, True].share = [1.0] * SORT_AFTER
        between = np.sqrt(squared(c, c))
        np.fill_diagonal(between, np.inf)
        half = between.min(1) / 2
        for (name, _, by_code), b in state.items():
            b.step(own, own_now, index, least, by_group[name], moved if r else None, half,
                   order if by_code else np.arange(len(x)))
        new = means(x, w, index, c)
        moved = np.sqrt(((new - c) ** 2).sum(1))
        c = new
    return {key: b.share for key, b in state.items()}, last


def iteration_seconds(lib, head):
    x, w = np.ascontiguousarray(head[0][:, 16:24], np.float32), head[1]
    best = {}
    for iterations in (5, 25) * 3:
        start = time.perf_counter()
        library_table(lib, x, w, 256, iterations, 0)
        best[iterations] = min(best.get(iterations, np.inf), time.perf_counter() - start)
    return (best[25] - best[5]) / 20


def part_prune(lib, heads):
    print(f"exact pruning, {ROUNDS} Lloyd iterations, the first a full search; % of the search's work that bounds spare,"
          "\n  mean of the others (the last), by point and by tile of 16 and 48 consecutive points; then the same tiles of"
          f"\n  points sorted by code after iteration {SORT_AFTER}. Groups of {GROUP} centroids. speed: of all {ROUNDS} searches at best,"
          "\n  bookkeeping free. The last line of a shape: the last iteration that changed a code, by problem")
    lower, drift = np.ones((131072, 256 // GROUP), np.float32), np.full(256 // GROUP, 1e-9, np.float32)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        np.subtract(lower, drift, out=lower)
        times.append(time.perf_counter() - start)
    print(f"  lowering the bounds of 131072 points and {256 // GROUP} groups once: {1e3 * min(times):.1f} ms; "
          f"one library iteration, d 8 K 256, one thread: {1e3 * iteration_seconds(lib, heads[-1]):.1f} ms", flush=True)
    keys = [("Hamerly", t, s) for s in (False, True) for t in (1, 16, 48) if t > 1 or not s]
    keys += [("Yinyang",) + k[1:] for k in keys]
    shapes = [(d, k, n, True) for d, k in ((8, 256), (4, 16), (16, 256)) for n in (16384, 131072)]
    for d, k, n, weighted in shapes + [(8, 256, 131072, False)]:
        problems = []
        for rows, w in heads:
            x, u = np.ascontiguousarray(rows[:n, 16:16 + d], np.float32), w[:n] if weighted else np.ones_like(w[:n])
            problems.append(prune(x, u, library_table(lib, x, u, k, 1, 0)))
        print(f"  d {d} K {k} n {len(x)}" + ("" if weighted else ", without weights"))
        for key in keys:
            if key[0] == "Yinyang" and k <= GROUP:
                continue
            shares = np.array([p[0][key] for p in problems])
            best = ROUNDS / shares.sum(1)
            print(f"    {key[0]} {('points' if key[1] == 1 else f'tiles of {key[1]}') + (', sorted' if key[2] else ''):20}"
                  f" {100 * (1 - shares[:, 1:].mean()):5.1f} ({100 * (1 - shares[:, -1].mean()):5.1f})   speed"
                  f" {ROUNDS / shares.sum(1).mean():5.2f}  by problem {' '.join(f'{b:.2f}' for b in best)}", flush=True)
        print("    last change at", *(p[1] for p in problems))


# ---- mini-batches ----

def minibatch(x, w, c, batch, passes, rng, by_weight):
    """Sculley's: a centroid is the weighted mean of all rows it was given. by_weight: rows drawn by weight, count one."""
    total = np.zeros(len(c))
    chances = np.cumsum(w) / w.sum()
    for _ in range(int(passes * len(x) // batch)):
        pick = np.searchsorted(chances, rng.random(batch)) if by_weight else rng.integers(0, len(x), batch)
        pick = np.minimum(pick, len(x) - 1)
        rows = x[pick]
        mass, gain = sums(rows, np.ones(batch) if by_weight else w[pick], nearest(rows, c)[0], len(c))
        total += mass
        hit = mass > 0
        c = c.copy()
        c[hit] += ((gain[hit] - mass[hit, None] * c[hit]) / total[hit, None]).astype(np.float32)
    return c


def part_minibatch(lib, heads):
    print("mini-batches of 4096 against Lloyd from the same start, d = 8, K = 256: weighted error / variance held out, change"
          "\n  against 15 passes of Lloyd (mean and standard error over problems), without layer 0; the same change of the training"
          "\n  error; NumPy seconds a problem. The last two lines start from random rows")
    methods = {"the start": lambda x, w, c, rng: c}
    for p in (1, 2, 5, 10, 15, 20):
        methods[f"Lloyd, {p} passes"] = lambda x, w, c, rng, p=p: lloyd(x, w, c, p)
    for p in (1, 2, 5, 15):
        for by in (False, True):
            methods[f"mini-batches, {p} passes" + (", drawn by weight" if by else "")] = \
                lambda x, w, c, rng, p=p, by=by: minibatch(x, w, c, 4096, p, rng, by)
    for p, q in ((2, 3), (5, 10)):
        methods[f"mini-batches {p}, by weight, then Lloyd {q}"] = \
            lambda x, w, c, rng, p=p, q=q: lloyd(x, w, minibatch(x, w, c, 4096, p, rng, True), q)
    methods["library, 15 iterations, 6 swap rounds"] = lambda x, w, c, rng: library_table(lib, x, w, len(c), 15, 6, number)
    methods["library, 40 iterations, 12 swap rounds"] = lambda x, w, c, rng: library_table(lib, x, w, len(c), 40, 12, number)
    draw = lambda x, w, c, rng: x[rng.choice(len(x), len(c), False, w / w.sum())]  # noqa: E731
    methods["random rows by weight, Lloyd 15"] = lambda x, w, c, rng: lloyd(x, w, draw(x, w, c, rng), 15)
    methods["random rows by weight, mini-batches 15"] = \
        lambda x, w, c, rng: minibatch(x, w, draw(x, w, c, rng), 4096, 15, rng, False)
    errors, trained, seconds = {m: [] for m in methods}, {m: [] for m in methods}, {m: 0.0 for m in methods}
    for number, (rows, w) in enumerate(heads):
        out = held_out(len(rows))
        x, y = rows[~out, 16:24].astype(np.float32), rows[out, 16:24].astype(np.float32)
        u, v = w[~out].astype(np.float64), w[out].astype(np.float64)
        c = library_table(lib, x, u, 256, 1, 0, number)
        for name, method in methods.items():
            start = time.perf_counter()
            table = method(x, u, c, np.random.default_rng(number))
            seconds[name] += time.perf_counter() - start
            errors[name].append(relative(y, v, nearest(y, table)[1]))
            trained[name].append(relative(x, u, nearest(x, table)[1]))
    for name, e in errors.items():
        change, inside = (100 * (np.array(a[name]) / np.array(a["Lloyd, 15 passes"]) - 1) for a in (errors, trained))
        print(f"    {name:42} {np.mean(e):.5f} {change.mean():+6.2f} +- {change.std(ddof=1) / len(e) ** .5:.2f} %"
              f"  {change[2:].mean():+6.2f} %  trained {inside.mean():+6.2f} % {seconds[name] / len(heads):6.2f} s", flush=True)


# ---- gain and shape ----

def gain_shape(x, w, gains, shapes, rounds, rng):
    """[gains * shapes][d]: directions by spherical k-means and gains on them, then both refined together."""
    size = np.maximum(np.sqrt((x * x).sum(1)), 1e-20)
    u = x[rng.choice(len(x), shapes, False, w * size ** 2 / (w * size ** 2).sum())]
    u = u / np.maximum(np.sqrt((u * u).sum(1)), 1e-20)[:, None]
    for _ in range(rounds):
        direction = sums(x, w * size, (x @ u.T).argmax(1), shapes)[1]
        length = np.sqrt((direction ** 2).sum(1))[:, None]
        u = np.where(length > 0, direction / np.maximum(length, 1e-30), u).astype(np.float32)
    along = (x @ u.T).max(1)
    g = np.quantile(along, (np.arange(gains) + .5) / gains)[:, None].astype(np.float32)
    g = lloyd(along[:, None], w, g, rounds)[:, 0]
    for _ in range(rounds):
        index = nearest(x, (g[:, None, None] * u).reshape(-1, x.shape[1]))[0]
        gain, shape = index // shapes, index % shapes
        direction = sums(x, w * g[gain], shape, shapes)[1]
        length = np.sqrt((direction ** 2).sum(1))[:, None]
        u = np.where(length > 0, direction / np.maximum(length, 1e-30), u).astype(np.float32)
        along = (x * u[shape]).sum(1)
        mass, total = np.bincount(gain, w, gains), np.bincount(gain, w * along, gains)
        g = np.where(mass > 0, total / np.maximum(mass, 1e-300), g).astype(np.float32)
    return (g[:, None, None] * u).reshape(-1, x.shape[1])


def token_scale(rows, reference, w, bits):
    """RMS of each token's head about the training mean, in 2^bits logarithmic steps over the range of the reference."""
    mean = np.average(reference, 0, w)
    log = np.log(np.maximum(np.sqrt(((reference - mean) ** 2).mean(1)), 1e-6))
    low, high = log.min(), log.max()
    own = np.log(np.maximum(np.sqrt(((rows - mean) ** 2).mean(1)), 1e-6))
    step = (high - low) / (2 ** bits - 1)
    return np.exp(low + step * np.clip(np.rint((own - low) / step), 0, 2 ** bits - 1)).astype(np.float32)


def part_gain(lib, heads):
    print("gain and shape at equal bits, d = 8: held-out weighted error / variance, change of the mean against 256 free"
          "\n  entries (and of the problems, least to most). A scale of 8 bits a token and head is 1 bit a code: 512 entries")
    errors = {}
    for number, (rows, w) in enumerate(heads):
        out, rng = held_out(len(rows)), np.random.default_rng(number)
        rows, w = rows.astype(np.float32), w.astype(np.float64)
        u, v = w[~out], w[out]
        mean = np.average(rows[~out, 16:24], 0, u).astype(np.float32)
        x, y = rows[~out, 16:24] - mean, rows[out, 16:24] - mean

        def note(name, table, scale=1.0):
            least = nearest(y / scale, table)[1] * np.ravel(scale) ** 2
            errors.setdefault(name, []).append(relative(y, v, least))

        for k in (256, 512):
            note(f"{k} free entries", library_table(lib, x, u, k, 15, 6, number))
        for gains, shapes in ((2, 128), (4, 64), (8, 32), (16, 16)):
            note(f"{gains} gains x {shapes} directions", gain_shape(x, u, gains, shapes, 15, rng))
        s = token_scale(rows[~out], rows[~out], u, 8)
        t = token_scale(rows[out], rows[~out], u, 8)[:, None]
        note("token scale, 256 free (9 bits)", library_table(lib, x / s[:, None], u * s ** 2, 256, 15, 6, number), t)
        note("token scale, 4 x 64 (9 bits)", gain_shape(x / s[:, None], u * s ** 2, 4, 64, 15, rng), t)
    base = np.array(errors["256 free entries"])
    for name, e in errors.items():
        kinds = []
        for kind, at in (("keys", slice(0, None, 2)), ("values", slice(1, None, 2))):
            each = 100 * (np.array(e)[at] / base[at] - 1)
            kinds.append(f"{kind} {np.mean(e[at]):.5f} {100 * (np.mean(e[at]) / base[at].mean() - 1):+6.1f} % "
                         f"({each.min():+.1f} to {each.max():+.1f})")
        print(f"    {name:32} {'  '.join(kinds)}", flush=True)


# ---- swaps ----

def part_swaps(lib, heads, repeats=8):
    """The library as it ships; differences are paired by seed, so that their standard errors mean something."""
    print(f"swaps, library, d = 8, K = 256, 15 iterations, {repeats} seeds: held-out error, gain over random seeding and 20"
          "\n  iterations without swaps (mean and standard error over seeds; the problems are the same), time ratio. 18 plain"
          "\n  iterations take about the time of 15 with swaps")
    jobs = [(np.ascontiguousarray(r[:, 16:24]), np.ascontiguousarray(w)) for r, w in heads]
    for weighted in (False, True):
        got = {}
        for repeat in range(repeats):
            for name, arguments in (("random, 20", (1, 20, 0)), ("no swaps", (0, 15, 0)),
                                    ("no swaps, 18", (0, 18, 0)), ("6 swap rounds", (0, 15, 6))):
                got.setdefault(name, []).append(quality.run(lib, jobs, weighted, *arguments, first_seed=1000 * repeat)[::2])
        base = np.array(got["random, 20"])
        for name, rows in got.items():
            held, seconds = np.array(rows).T
            gain = 100 * (1 - held / base[:, 0])
            print(f"    weights {'yes' if weighted else 'no':3} {name:14} {held.mean():.5f} {gain.mean():+5.2f} +- "
                  f"{gain.std(ddof=1) / repeats ** .5:.2f} %  time {np.median(seconds) / np.median(base[:, 1]):.2f}")
        on = np.array(got["6 swap rounds"])[:, 0]
        for other in ("no swaps", "no swaps, 18"):
            swap = 100 * (1 - on / np.array(got[other])[:, 0])
            print(f"    weights {'yes' if weighted else 'no':3} swaps against {other}: {swap.mean():+.2f} +- "
                  f"{swap.std(ddof=1) / repeats ** .5:.2f} %", flush=True)


def main():
    parts = {"swaps": part_swaps, "prune": part_prune, "minibatch": part_minibatch, "gain": part_gain}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capture")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--rows", type=int, help="of each problem, the first so many; default all")
    parser.add_argument("--part", nargs="+", choices=list(parts), default=list(parts))
    a = parser.parse_args()
    heads = [(x[:a.rows], w[:a.rows]) for x, w in quality.load(a.capture, a.layers, slice(None))]
    print(f"{len(heads)} problems (keys and values in turn), {len(heads[0][0])} rows")
    with tempfile.TemporaryDirectory() as folder:
        lib = quality.library(pathlib.Path(folder))
        for part in a.part:
            start = time.process_time()
            parts[part](lib, heads)
            print(f"  ({time.process_time() - start:.0f} processor seconds)", flush=True)


if __name__ == "__main__":
    main()
