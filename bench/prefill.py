#!/usr/bin/env python3
"""Prefill of kvbook against llama.cpp, side by side in one run, and against the products' own limit.

  pip install llama-cpp-python
  make build/bench/prefill_bench
  python3 bench/prefill.py MODEL.gguf TEXT [--rounds 5] [--threads 2] [-o bench/results/prefill-DATE.txt]

Each round runs kvbook's four measurements and llama.cpp's prefill of the same number of tokens, in turn, so that a machine
that drifts drifts for both. Medians and their ratios are printed, with the machine, the command and the date.
"""
import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time


def cpu_name():
    try:
        with open("/proc/cpuinfo") as f:
            return next(line.split(":", 1)[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


class LlamaCpp:
    def __init__(self, model, text, tokens, threads):
        from llama_cpp import Llama
        common = dict(n_ctx=tokens, n_batch=tokens, n_ubatch=min(tokens, 512), n_threads=threads, n_threads_batch=threads,
                      verbose=False)
        self.last = Llama(model, logits_all=False, **common)
        self.all = Llama(model, logits_all=True, **common)
        with open(text, "rb") as f:
            self.ids = self.last.tokenize(f.read(40 * tokens), add_bos=False)[:tokens]

    def rate(self, model):
        model.reset()
        start = time.perf_counter()
        model.eval(self.ids)
        return len(self.ids) / (time.perf_counter() - start)


def measure(args, tokens):
    rows = []
    env = dict(os.environ, OMP_NUM_THREADS=str(args.threads))
    llama = LlamaCpp(args.model, args.text, tokens, args.threads)
    llama.rate(llama.last), llama.rate(llama.all)  # warm up
    for _ in range(args.rounds):
        out = subprocess.run([args.bench, args.model, args.text, str(tokens), "2"], env=env, check=True,
                             stdout=subprocess.PIPE, text=True).stdout
        row = json.loads(out.splitlines()[-1])  # the second round of a fresh process is warm
        row["llama.cpp prefill"] = llama.rate(llama.last)
        row["llama.cpp all logits"] = llama.rate(llama.all)
        rows.append(row)
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--bench", default="build/bench/prefill_bench")
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    import llama_cpp
    lines = ["# bench/prefill.py, %s, %s, %d threads, llama-cpp-python %s" % (
        datetime.date.today(), cpu_name(), args.threads, llama_cpp.__version__),
        "# %s, %d rounds in turn, medians, tokens per second; OPENBLAS_CORETYPE=%s" % (
        os.path.basename(args.model), args.rounds, os.environ.get("OPENBLAS_CORETYPE", "(not set)"))]
    for tokens in (2048, 512):
        m = measure(args, tokens)
        lines.append("%5d tokens: sgemm limit %.0f, forward %.0f, eval %.0f, capture %.0f; llama.cpp prefill %.0f, "
                     "all logits %.0f" % (tokens, m["sgemm"], m["forward"], m["eval"], m["capture"],
                                          m["llama.cpp prefill"], m["llama.cpp all logits"]))
        lines.append("      eval / llama.cpp prefill %.2f, eval / all logits %.2f, eval / sgemm limit %.2f, "
                     "capture / eval %.2f" % (m["eval"] / m["llama.cpp prefill"], m["eval"] / m["llama.cpp all logits"],
                                              m["eval"] / m["sgemm"], m["capture"] / m["eval"]))
    print("\n".join(lines))
    if args.output:
        with open(args.output, "w") as f:
            f.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
