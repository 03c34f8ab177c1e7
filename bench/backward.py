#!/usr/bin/env python3
"""What the passes of end-to-end tuning cost, and how much of it is matrix products.

  make build/bench/backward_bench
  python3 bench/backward.py MODEL.gguf TEXT [--rounds 3] [--threads 2] [-o bench/results/backward-DATE.txt]

Prints medians over rounds in processor seconds per chunk and thread, and milliseconds a token, with the machine, the command
and the date.
"""
import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys


def cpu_name():
    with open("/proc/cpuinfo") as f:
        return next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), "unknown processor")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--bench", default="build/bench/backward_bench")
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    env = dict(os.environ, OMP_NUM_THREADS=str(args.threads), OMP_WAIT_POLICY="passive")
    out = subprocess.run([args.bench, args.model, args.text, str(args.tokens), str(args.rounds + 1)], env=env, check=True,
                         stdout=subprocess.PIPE, text=True).stdout
    rows = [json.loads(line) for line in out.splitlines()][1:]  # the first round warms up
    m = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    per_token = 1e3 * (m["loss"] + m["backward"]) / args.tokens
    lines = ["# bench/backward.py, %s, %s, %d threads, load average %.1f; %s, %d rounds, medians, OPENBLAS_CORETYPE=%s" % (
        datetime.date.today(), cpu_name(), args.threads, os.getloadavg()[0], os.path.basename(args.model), args.rounds,
        os.environ.get("OPENBLAS_CORETYPE", "(not set)")),
        "# processor seconds per chunk of %d tokens and thread" % args.tokens,
        "forward %.2f, the same with a tape %.2f" % (m["forward"], m["student"]),
        "loss %.2f, of which products %.2f" % (m["loss"], m["loss_gemm"]),
        "backward without attention %.2f, of which products %.2f; with all products made again %.2f" % (
            m["backward"], m["backward_gemm"], m["lean"]),
        "loss + backward: %.2f ms a token" % per_token]
    print("\n".join(lines))
    if args.output:
        with open(args.output, "w") as f:
            f.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
