#!/usr/bin/env python3
"""The table of bench/cuda_bench.sh: times of decoding, how many times FP16 that is, and the share of the limit of memory."""
import json
import sys

rows = [json.loads(line) for line in open(sys.argv[1]) if line.startswith("{")]
copy = next(r["tb_per_s"] for r in rows if "copy" in r)
fp16 = {(r["batch"], r["tokens"]): r["us"] for r in rows if r.get("fp16") == "decode"}
prefill = {r["tokens"]: r["us"] for r in rows if r.get("fp16", "").startswith("prefill")}
print(f"copy {copy} TB/s; FP16: best of flash and cuDNN\n")
print("| shape | kernel | batch x tokens | anchors, window | us | in a graph, us | FP16, us | times FP16 | share of byte limit |")
print("|---|---|---|---|---|---|---|---|---|")
for r in rows:
    if "shape" not in r:
        continue
    base = fp16.get((r["batch"], r["tokens"]))
    limit = r["mbytes"] / copy
    print(f"| {r['shape']} | {r['kernel']} | {r['batch']} x {r['tokens'] // 1024}K | {r['anchors'] * 100:g} %, {r['window']} | {r['us']} | "
          f"{r['graph_us']} | {base or '-'} | {base / r['us'] if base else 0:.2f} | {100 * limit / r['us']:.0f} % |")
