#!/bin/sh
# `kvbook bench`: runs, and says what the contract asks for.
. "$(dirname "$0")/lib.sh"

refuse "bench of nothing" 2 'expected one: kmeans' "$kvbook" bench
refuse "bench misspelt" 2 'did you mean kmeans' "$kvbook" bench kmens
expect "bench kmeans" 0 '^ +4 +8 +16 +1024 ' "$kvbook" bench kmeans --quick
"$kvbook" bench kmeans --quick --json >"$tmp/bench.json"
json "bench kmeans --json" "$tmp/bench.json" 'd["schema"] == 1 and d["seconds"] > 0 and d["baseline_seconds"] > 0 and
    abs(d["ratio"] * d["seconds"] / d["baseline_seconds"] - 1) < 1e-6'
json "its baseline is what the build has" "$tmp/bench.json" "d[\"baseline\"] == \"$(
    grep -q KVB_FAISS "$build/flags" && echo faiss || echo reference)\""
json "its cells" "$tmp/bench.json" 'len(d["cells"]) == 2 and all({"count", "d", "k", "n", "seconds", "baseline",
    "baseline_seconds", "ratio", "share_of_peak"} <= set(c) and 0 < (c["share_of_peak"] or 0.5) < 1.2 for c in d["cells"])'
done_testing
