#!/usr/bin/env python3
"""FP16 attention of PyTorch on the same machine: what bench/cuda_decode_bench is compared with. One line of JSON a cell."""
import json
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

H, G, D = 32, 8, 128
torch.manual_seed(0)


def median_us(f, n=40):
    times = []
    for i in range(n + 5):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        f(i)
        b.record()
        torch.cuda.synchronize()
        if i >= 5:
            times.append(a.elapsed_time(b) * 1e3)
    return sorted(times)[len(times) // 2]


def decode(batch, tokens):
    copies = max(1, int(200e6 // (batch * tokens * G * D * 4)))
    k = torch.randn(copies, batch, G, tokens, D, device="cuda", dtype=torch.float16)
    v = torch.randn(copies, batch, G, tokens, D, device="cuda", dtype=torch.float16)
    q = torch.randn(batch, H, 1, D, device="cuda", dtype=torch.float16)
    grouped = q.view(batch, G, H // G, D)  # one query: the heads of a KV head are rows of one product
    best = {}
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
        for how, query, gqa in (("gqa", q, True), ("packed", grouped, False)):
            try:
                with sdpa_kernel(backend):
                    best[f"{name} {how}"] = median_us(
                        lambda i: F.scaled_dot_product_attention(query, k[i % copies], v[i % copies], enable_gqa=gqa))
            except Exception as e:  # a backend that refuses the shape
                best[f"{name} {how}"] = None
    times = {n: t for n, t in best.items() if t}
    name = min(times, key=times.get)
    print(json.dumps({"fp16": "decode", "batch": batch, "tokens": tokens, "us": round(times[name], 1), "best": name,
                      "all": {n: t and round(t, 1) for n, t in best.items()}}), flush=True)


def prefill(tokens):
    q = torch.randn(1, H, tokens, D, device="cuda", dtype=torch.float16)
    k = torch.randn(1, G, tokens, D, device="cuda", dtype=torch.float16)
    v = torch.randn(1, G, tokens, D, device="cuda", dtype=torch.float16)
    times = {}
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
        try:
            with sdpa_kernel(backend):
                times[name] = median_us(lambda i: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), 20)
        except Exception:
            pass
    name = min(times, key=times.get)
    print(json.dumps({"fp16": "prefill, one layer", "tokens": tokens, "us": round(times[name], 1), "best": name}), flush=True)


def copy_rate():
    x = torch.empty(1 << 30, device="cuda", dtype=torch.uint8).random_()
    y = torch.empty_like(x)
    us = median_us(lambda i: y.copy_(x), 20)
    print(json.dumps({"copy": "1 GiB, read and written", "tb_per_s": round(2 * (1 << 30) / us * 1e-6, 3),
                      "gpu": torch.cuda.get_device_name(0), "torch": torch.__version__}), flush=True)


copy_rate()
for cell in ((1, 131072), (1, 8192), (1, 32768), (16, 8192), (64, 2048), (8, 131072)):
    decode(*cell)
prefill(8192)
