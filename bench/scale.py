#!/usr/bin/env python3
"""What a calibration of a large model costs, computed from rates that were measured: bench/scale.py [--tokens N] [--rows N] [--nodes N]
[--cores N] prints the table of docs/scale.md for Llama-3-70B's shape.

The rates (bench/results): capture and training on one H100, Llama-3-8B's shape (cuda-calib-2026-11-24.txt); capture of SmolLM2 on 2 cores
(prefill-2026-11-23.txt); k-means on 2 cores (kmeans-table-2026-11-23.txt). Work is scaled by multiply-adds and by points; cores and
GPUs by their number, which nobody measured."""
import argparse

GPU_TOKENS, GPU_CAPTURE_S, GPU_TRAIN_S, GPU_LAYERS, GPU_HEADS = 64 * 2048, 14.36, 14.74, 32, 8
CPU_TOKENS_PER_S, CPU_CORES = 633, 2
KMEANS_S, KMEANS_POINTS = 0.6038, 180 * 16384 * 20
WIRE = 12.5e9  # bytes a second of 100 Gbit/s: not measured, a node's network card by its name


def matrix_weights(layers, width, ffn, heads, kv_heads, dim):
    return layers * (width * (heads + 2 * kv_heads) * dim + heads * dim * width + 3 * width * ffn)


def human(value, unit, steps):
    for size, name in steps:
        if value >= size:
            return "%.3g %s" % (value / size, name)
    return "%.3g %s" % (value, unit)


def size(value):
    return human(value, "B", [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB")])


def took(value):
    return human(value, "s", [(3600, "h"), (60, "min")])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=float, default=1e7)
    parser.add_argument("--rows", type=float, default=1e6, help="tokens that are kept of them")
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--cores", type=int, default=64, help="of a node")
    a = parser.parse_args()
    layers, width, ffn, heads, kv_heads, dim = 80, 8192, 28672, 64, 8, 128
    big = matrix_weights(layers, width, ffn, heads, kv_heads, dim)
    llama8 = matrix_weights(32, 4096, 14336, 32, 8, 128)
    smol = matrix_weights(30, 576, 1536, 9, 3, 64)
    share = a.tokens / a.nodes
    gpu_capture = share * GPU_CAPTURE_S / GPU_TOKENS * big / llama8
    cpu_capture = share / (CPU_TOKENS_PER_S * a.cores / CPU_CORES * smol / big)
    row = layers * kv_heads * (4 * dim + 8) + 8
    print("matrix weights: %.3g; one token, captured: %s; %g tokens, %d nodes of %d cores" % (big, size(row), a.tokens, a.nodes, a.cores))
    print("| | every token kept | %s tokens kept |" % human(a.rows, "", [(1e6, "million")]))
    print("|---|---|---|")
    table = {}
    for rows in (a.tokens, a.rows):
        points = rows
        while points / 2 >= 1024 * 256:  # training samples down to 1024 points a centroid
            points /= 2
        layer = kv_heads * (4 * dim + 8) * rows
        mine = -(-layers // a.nodes)
        gpu_train = mine * GPU_TRAIN_S / GPU_LAYERS * points / GPU_TOKENS * kv_heads / GPU_HEADS
        cpu_train = mine * 2 * kv_heads * dim / 8 * points * 17 * KMEANS_S / KMEANS_POINTS * CPU_CORES / a.cores
        for name, text in [
            ("captured, all together (disk of `--shard`)", size(row * rows)),
            ("captured, of one node", size(row * rows / a.nodes)),
            ("one layer, gathered", size(layer)),
            ("one layer while `best` trains it, beyond that", size(28 * kv_heads * dim * rows)),
            ("network, all together (twice with `--allocate`)", size(row * rows * (a.nodes - 1) / a.nodes)),
            ("network, time at 100 Gbit/s a node", took(row * rows * (a.nodes - 1) / a.nodes / a.nodes / WIRE)),
            ("capture, one H100 a node", took(gpu_capture)),
            ("capture, CPUs", took(cpu_capture)),
            ("training of `antkv` at 1 bit, one H100 a node", took(gpu_train)),
            ("k-means of `antkv` at 1 bit, CPUs", took(cpu_train)),
        ]:
            table.setdefault(name, []).append(text)
    for name, cells in table.items():
        print("| %s | %s |" % (name, " | ".join(cells)))
    print("weights as float32: %s on every node (`--max-weights` expands them layer by layer instead)" % size(4 * big))


if __name__ == "__main__":
    main()
