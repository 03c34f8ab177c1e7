#!/usr/bin/env python3
"""k-means against faiss-cpu (PyPI) and, where ../shared/prototypes is there, against the prototype: the same points,
the same initial centroids, the same number of Lloyd iterations, runs taken in turns, the fastest of each counts.

    pip install numpy faiss-cpu && make && python3 bench/kmeans_faiss.py [--quick] [--reps 3]

faiss runs at its best threading: all threads in one problem, or one thread a problem and problems side by side.
"""
import argparse
import concurrent.futures
import ctypes
import datetime
import os
import pathlib
import subprocess
import tempfile
import time

for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):  # would hold faiss back
    os.environ.pop(name, None)

import faiss  # noqa: E402
import numpy as np  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROTOTYPE = ROOT.parent / "shared" / "prototypes" / "km.h"
ITERATIONS = 20
THREADS = os.cpu_count()


class Problem(ctypes.Structure):
    _fields_ = [("points", ctypes.c_void_p), ("type", ctypes.c_int), ("count", ctypes.c_size_t),
                ("stride", ctypes.c_size_t), ("channels", ctypes.c_uint32), ("centroids", ctypes.c_uint32),
                ("weights", ctypes.c_void_p), ("initial", ctypes.c_void_p), ("seed", ctypes.c_uint64),
                ("table", ctypes.c_void_p)]


class Options(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_uint32), ("iterations", ctypes.c_uint32), ("seeding", ctypes.c_int),
                ("tolerance", ctypes.c_double), ("holdout_every", ctypes.c_uint32),
                ("holdout_block", ctypes.c_uint32), ("threads", ctypes.c_uint32), ("progress", ctypes.c_void_p),
                ("progress_user", ctypes.c_void_p), ("swap_rounds", ctypes.c_uint32),
                ("backend", ctypes.c_int)]


class Result(ctypes.Structure):
    _fields_ = [("train_error", ctypes.c_double), ("heldout_error", ctypes.c_double), ("variance", ctypes.c_double),
                ("heldout_variance", ctypes.c_double), ("iterations", ctypes.c_uint32), ("repairs", ctypes.c_uint32),
                ("used", ctypes.c_uint32), ("entropy", ctypes.c_double), ("swaps", ctypes.c_uint32),
                ("points_per_centroid", ctypes.c_double)]


def build_ours(folder):
    library = folder / "kmeans.so"
    subprocess.run(["cc", "-shared", "-o", library, "-Wl,--whole-archive", ROOT / "build/libkvb-kmeans.a",
                    "-Wl,--no-whole-archive", "-fopenmp", "-lz", "-lm"], check=True)
    return ctypes.CDLL(str(library))


def build_prototype(folder):
    if not PROTOTYPE.exists():
        return None
    source, library = folder / "proto.cpp", folder / "proto.so"
    source.write_text(f'''#include "{PROTOTYPE}"
extern "C" void proto_batch(int d, const float *x, long n, int k, int it, float *c, int count) {{
    if (count == 1) {{ km_dispatch(d, x, 0, n, k, it, c, 1, 0); return; }}
    #pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < count; i++) km_dispatch(d, x + (size_t)i * n * d, 0, n, k, it, c + (size_t)i * k * d, 0, 0);
}}''')
    result = subprocess.run(["c++", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-o", library, source],
                            capture_output=True)
    return ctypes.CDLL(str(library)) if result.returncode == 0 else None


def make_points(count, n, d, seed):
    """Mixtures of correlated Gaussians with heavy tails, as keys and values are."""
    rng = np.random.default_rng(seed)
    x = np.empty((count, n, d), np.float32)
    for i in range(count):
        means, mix = 0.8 * rng.standard_normal((12, d)), np.eye(d) + 0.7 / np.sqrt(d) * rng.standard_normal((d, d))
        tail = np.sqrt(5 / rng.chisquare(5, n))[:, None]
        x[i] = (means[rng.integers(12, size=n)] + 0.7 * tail * (rng.standard_normal((n, d)) @ mix.T)) * \
            np.exp(0.5 * rng.standard_normal(d))
    return x


def run_ours(library, x, start, iterations=ITERATIONS, results=None):
    count, n, d = x.shape
    k = start.shape[1]
    tables = np.empty_like(start)
    problems = (Problem * count)()
    for i in range(count):
        problems[i] = Problem(x[i].ctypes.data, 0, n, d, d, k, None, start[i].ctypes.data, i, tables[i].ctypes.data)
    options = Options()
    library.kvb_kmeans_options_init_sized(ctypes.byref(options), ctypes.c_size_t(ctypes.sizeof(options)))
    options.iterations, options.swap_rounds = iterations, 0
    status = library.kvb_kmeans_train(problems, ctypes.c_size_t(count), ctypes.byref(options), results, None)
    assert status == 0, status
    return tables


def run_prototype(library, x, start):
    tables = start.copy()
    library.proto_batch(x.shape[2], x.ctypes.data_as(ctypes.c_void_p), ctypes.c_long(x.shape[1]), start.shape[1],
                        ITERATIONS, tables.ctypes.data_as(ctypes.c_void_p), x.shape[0])
    return tables


def faiss_one(x, start, threads):
    faiss.omp_set_num_threads(threads)
    parameters = faiss.ClusteringParameters()
    parameters.niter, parameters.min_points_per_centroid, parameters.max_points_per_centroid = ITERATIONS, 1, 1 << 30
    clustering = faiss.Clustering(x.shape[1], start.shape[0], parameters)
    faiss.copy_array_to_vector(start.ravel(), clustering.centroids)
    clustering.train(x, faiss.IndexFlatL2(x.shape[1]))
    return faiss.vector_to_array(clustering.centroids).reshape(start.shape)


def run_faiss_inside(x, start):
    return np.stack([faiss_one(x[i], start[i], THREADS) for i in range(len(x))])


def run_faiss_side_by_side(x, start):
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return np.stack(list(pool.map(lambda i: faiss_one(x[i], start[i], 1), range(len(x)))))


def error_of(library, x, tables):
    """Mean error of tables: a training of no iterations that starts from them."""
    results = (Result * len(x))()
    run_ours(library, x, np.ascontiguousarray(tables), 0, ctypes.byref(results))
    return np.mean([result.train_error for result in results])


def bench_cell(ours, prototype, shape, reps, budget):
    count, d, k, n = shape
    x = make_points(count, n, d, d * 1000 + k)
    rng = np.random.default_rng(1)
    start = np.stack([x[i][rng.choice(n, k, replace=False)] for i in range(count)])
    runs = {"ours": lambda: run_ours(ours, x, start), "faiss inside": lambda: run_faiss_inside(x, start)}
    if count > 1:
        runs["faiss side by side"] = lambda: run_faiss_side_by_side(x, start)
    if prototype is not None:
        runs["prototype"] = lambda: run_prototype(prototype, x, start)
    best, tables, begin = {name: float("inf") for name in runs}, {}, time.time()
    for rep in range(reps):
        for name, call in runs.items():
            time.sleep(0.02)  # threads of the run before stop spinning
            t = time.perf_counter()
            tables[name] = call()
            best[name] = min(best[name], time.perf_counter() - t)
        if time.time() - begin > budget:
            break
    wheel = min(best["faiss inside"], best.get("faiss side by side", float("inf")))
    agree = error_of(ours, x, tables["ours"]) / error_of(ours, x, tables["faiss inside"]) - 1
    old = best.get("prototype", float("nan"))
    print(f"{count:4d} {d:3d} {k:5d} {n:7d}  {best['ours']:9.4f} {wheel:9.4f} {old:9.4f}   {wheel / best['ours']:7.2f} "
          f"{old / best['ours']:7.2f}   {agree:+.1e}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer problems in a batch")
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--budget", type=float, default=20, help="seconds a cell, about")
    arguments = parser.parse_args()
    part = 8 if arguments.quick else 1
    cells = [(180 // part, 8, 256, 16384), (48 // part, 4, 256, 16384), (48 // part, 4, 64, 16384),
             (24 // part, 16, 256, 16384), (1, 2, 256, 65536), (4, 32, 4096, 16384)]
    cells += [(1, d, k, 65536) for d in (2, 4, 8, 16, 32, 64) for k in (16, 256, 1024)]
    cells += [(8, d, k, 16384) for d in (2, 4, 8, 16, 32, 64) for k in (16, 64, 256, 1024)]
    with tempfile.TemporaryDirectory() as folder:
        ours, prototype = build_ours(pathlib.Path(folder)), build_prototype(pathlib.Path(folder))
        cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
        print(f"{datetime.date.today()}, {cpu}, {THREADS} threads, faiss-cpu {faiss.__version__} "
              f"({faiss.get_compile_options().strip()}), {ITERATIONS} iterations; seconds, the fastest of up to "
              f"{arguments.reps} runs\ncount d     K       n       ours     faiss prototype   faiss/ours proto/ours  "
              "error against faiss's")
        for shape in cells:
            proto = prototype if shape[1] in (2, 4, 8, 16, 32) else None
            bench_cell(ours, proto, shape, arguments.reps, arguments.budget)


if __name__ == "__main__":
    main()
