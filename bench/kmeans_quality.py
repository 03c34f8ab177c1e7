#!/usr/bin/env python3
"""Held-out error on a real capture, by seeding, beside random seeding with 20 plain Lloyd iterations.

    pip install numpy && make && python3 bench/kmeans_quality.py CAPTURE.kvc [--layers 3] [--iterations 15]

One problem a kind (keys, values) of head 0 and group 2 of evenly spread layers: d = 8, K = 256, every 16th block of 256
rows held out; without weights and with the capture's. Means of error / variance over problems, and seconds in all.
"""
import argparse
import ctypes
import json
import pathlib
import struct
import subprocess
import tempfile
import time

import numpy as np


class Problem(ctypes.Structure):
    _fields_ = [("points", ctypes.c_void_p), ("type", ctypes.c_int), ("count", ctypes.c_size_t),
                ("stride", ctypes.c_size_t), ("channels", ctypes.c_uint32), ("centroids", ctypes.c_uint32),
                ("weights", ctypes.c_void_p), ("initial", ctypes.c_void_p), ("seed", ctypes.c_uint64),
                ("table", ctypes.c_void_p)]


class Options(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_uint32), ("iterations", ctypes.c_uint32), ("seeding", ctypes.c_int),
                ("tolerance", ctypes.c_double), ("holdout_every", ctypes.c_uint32),
                ("holdout_block", ctypes.c_uint32), ("threads", ctypes.c_uint32), ("progress", ctypes.c_void_p),
                ("progress_user", ctypes.c_void_p), ("swap_rounds", ctypes.c_uint32), ("backend", ctypes.c_int)]


class Result(ctypes.Structure):
    _fields_ = [("train_error", ctypes.c_double), ("heldout_error", ctypes.c_double), ("variance", ctypes.c_double),
                ("heldout_variance", ctypes.c_double), ("iterations", ctypes.c_uint32), ("repairs", ctypes.c_uint32),
                ("used", ctypes.c_uint32), ("entropy", ctypes.c_double), ("swaps", ctypes.c_uint32),
                ("points_per_centroid", ctypes.c_double)]


def library(folder):
    root = pathlib.Path(__file__).resolve().parent.parent
    path = folder / "kmeans.so"
    subprocess.run(["cc", "-shared", "-o", path, "-Wl,--whole-archive", root / "build/libkvb-kmeans.a",
                    "-Wl,--no-whole-archive", "-fopenmp", "-lz", "-lm"], check=True)
    return ctypes.CDLL(str(path))


def run(lib, jobs, weighted, seeding, iterations, swaps, first_seed=0):
    d, k = 8, 256
    problems, results = (Problem * len(jobs))(), (Result * len(jobs))()
    tables = np.empty((len(jobs), k, d), np.float32)
    for i, (x, w) in enumerate(jobs):
        problems[i] = Problem(x.ctypes.data, 1, len(x), d, d, k, w.ctypes.data if weighted else None, None,
                              first_seed + i, tables[i].ctypes.data)
    options = Options()
    lib.kvb_kmeans_options_init_sized(ctypes.byref(options), ctypes.c_size_t(ctypes.sizeof(options)))
    options.seeding, options.iterations, options.swap_rounds = seeding, iterations, swaps
    options.holdout_every = 16
    start = time.perf_counter()
    status = lib.kvb_kmeans_train(problems, ctypes.c_size_t(len(jobs)), ctypes.byref(options), results, None)
    seconds = time.perf_counter() - start
    assert status == 0, status
    return np.mean([r.heldout_error / r.heldout_variance for r in results]), \
        np.mean([r.train_error / r.variance for r in results]), seconds


def load(path, layers, channels=slice(16, 24)):
    with open(path, "rb") as f:
        size = struct.unpack("<Q", f.read(8))[0]
        header = json.loads(f.read(size))
    every = sorted({int(name.split(".")[1]) for name in header if name.startswith("layers.")})

    def tensor(name):
        h = header[name]
        kind = {"F16": np.float16, "F32": np.float32}[h["dtype"]]
        return np.memmap(path, kind, "r", 8 + size + h["data_offsets"][0], tuple(h["shape"]))

    jobs = []
    for layer in every[:: max(1, len(every) // layers)][:layers]:
        for kind, weight in (("keys", "weight_k"), ("values", "weight_v")):
            jobs.append((np.ascontiguousarray(tensor(f"layers.{layer}.{kind}")[0, :, channels]),
                         np.ascontiguousarray(tensor(f"layers.{layer}.{weight}")[0])))
    return jobs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capture")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=15)
    a = parser.parse_args()
    jobs = load(a.capture, a.layers)
    print(f"{len(jobs)} problems, {len(jobs[0][0])} rows, d = 8, K = 256\n"
          "weights  seeding    iterations swaps   held out   gain    training   seconds  time")
    with tempfile.TemporaryDirectory() as folder:
        lib = library(pathlib.Path(folder))
        for weighted in (False, True):
            base = None
            for name, seeding, iterations, swaps in (("random", 1, 20, 0), ("kmeans++", 0, a.iterations, 0),
                                                     ("kmeans++", 0, a.iterations, 6), ("split", 2, a.iterations, 0),
                                                     ("split", 2, a.iterations, 6), ("kmeans++", 0, 40, 12),
                                                     ("split", 2, 40, 12)):
                held, trained, seconds = run(lib, jobs, weighted, seeding, iterations, swaps)
                base = base or (held, seconds)
                print(f"{'yes' if weighted else 'no':8} {name:10} {iterations:10d} {swaps:5d}  {held:9.5f} "
                      f"{100 * (1 - held / base[0]):+5.2f} %  {trained:9.5f} {seconds:9.2f} {seconds / base[1]:5.2f}",
                      flush=True)


if __name__ == "__main__":
    main()
