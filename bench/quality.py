#!/usr/bin/env python3
"""Perplexity of recipes at equal bits on WikiText-2 and C4, side by side, with the paired standard error of the difference
to the exact cache. Resumable: what build/quality/ and the results file hold is not made again.

    bench/quality.sh MODEL.gguf [--chunks 64] [--score-chunks 64] [--tune N] [--only best@1 antkv@1 ...]

Calibrates on the first CHUNKS x 2048 tokens of WikiText-2 valid; scores as many of WikiText-2 test, or --score-chunks, and half
as many of C4, every book with the policy of its recipe, anchors by --protocol. Writes bench/results/quality.jsonl (one
line a book and text), quality.md and quality.svg beside it. Needs ../shared/data and Python's standard library.
"""
import argparse
import datetime
import hashlib
import json
import math
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUNS = ["antkv@4", "antkv@2", "antkv@1", "antkv@0.5", "antkv@0.375", "best@4", "best@2", "best@1", "best@0.5",
        "best@0.375", "best-fast@1", "best-bare@1"]
BARE = ["--anchors", "0", "--window", "0", "--sinks", "0", "--exact", "half"] # NAME-bare: recipe NAME, every token coded
BOOKS_AT_ONCE = 4 # share one pass of the exact model
COLOURS = {"antkv": "#b3541e", "best": "#1f6f8b", "best-fast": "#6a4c93", "best-bare": "#7aa6b8"}


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=pathlib.Path, nargs="?", help="GGUF file; without it only table and picture are made anew")
    p.add_argument("--chunks", type=int, default=64, help="of 2048 tokens, for calibration and WikiText-2 (C4: half)")
    p.add_argument("--score-chunks", type=int, help="of WikiText-2 to score, half as many of C4 (default: as many as --chunks)")
    p.add_argument("--protocol", choices=["chunk", "causal"], default="chunk", help="how anchors are chosen")
    p.add_argument("--tune", type=int, default=0, help="epochs of tuning of the best* recipes")
    p.add_argument("--only", nargs="*", default=RUNS, metavar="RECIPE@BITS")
    p.add_argument("--data", type=pathlib.Path, default=ROOT.parent / "shared" / "data")
    p.add_argument("--results", type=pathlib.Path, default=ROOT / "bench" / "results")
    p.add_argument("--kvbook", type=pathlib.Path, default=ROOT / "build" / "kvbook")
    return p.parse_args()


def machine():
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    return f"{os.cpu_count()} threads, {cpu}"


def run(command):
    print("+", " ".join(str(c) for c in command), file=sys.stderr)
    return subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True).stdout


def calibrate(a, work, name):
    recipe, bits = name.split("@")
    tune = a.tune if recipe.startswith("best") else 0
    book = work / f"{name}{f'-tune{tune}' if tune else ''}.kvb"
    note = book.with_suffix(".seconds")
    if not book.exists():
        start = time.time()
        command = [a.kvbook, "calibrate", "--model", a.model, "--text", a.data / "wikitext2/wiki.valid.raw", "--ctx", 2048,
                   "--chunks", a.chunks, "--recipe", recipe.removesuffix("-bare"), "--bits", bits, "--seed", 1, "-o", book]
        run(command + (BARE if recipe.endswith("-bare") else []) + (["--tune", tune] if tune else []))
        note.write_text(str(round(time.time() - start)))
    return {"recipe": recipe, "bits": float(bits), "path": book, "book": hashlib.sha256(book.read_bytes()).hexdigest()[:16],
            "tune": tune, "train_seconds": float(note.read_text()) if note.exists() else None}


def score(a, books, text, chunks):
    """One line of results for each book."""
    out = run([a.kvbook, "eval", "--model", a.model, "--text", a.data / text, "--ctx", 2048, "--chunks", chunks, "--json",
               "--anchor-protocol", a.protocol, "--book", *(b["path"] for b in books)])
    lines = [line for line in map(json.loads, out.splitlines()) if line["book"] is not None]
    if len(lines) != len(books):
        sys.exit(f"quality.py: {len(lines)} lines of results for {len(books)} books")
    return lines


def load(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def measure(a):
    digest = hashlib.sha256(a.kvbook.read_bytes() + a.model.read_bytes()).hexdigest()[:12]
    work = ROOT / "build" / "quality" / f"{digest}-{a.chunks}"
    work.mkdir(parents=True, exist_ok=True)
    results = a.results / "quality.jsonl"
    books = [calibrate(a, work, name) for name in a.only]
    scored = a.score_chunks or a.chunks
    keep = ("ppl", "ppl_exact", "kl", "top1", "nll_delta", "nll_delta_error", "bits_nominal", "bits_effective",
            "bits_effective_32k", "bits_effective_128k", "targets", "policy")
    for title, (text, chunks) in {"WikiText-2": ("wikitext2/wiki.test.raw", scored),
                                  "C4": ("c4/c4_validation_first400.jsonl", max(scored // 2, 1))}.items():
        have = {(r["book"], r["text"], r["chunks"], r["protocol"]) for r in load(results)}
        todo = [b for b in books if (b["book"], title, chunks, a.protocol) not in have]
        for at in range(0, len(todo), BOOKS_AT_ONCE):
            some = todo[at:at + BOOKS_AT_ONCE]
            for book, found in zip(some, score(a, some, text, chunks)):
                line = {**{k: v for k, v in book.items() if k != "path"}, "text": title, "chunks": chunks,
                        "protocol": a.protocol, "date": datetime.date.today().isoformat(), "machine": machine(),
                        **{k: found[k] for k in keep}}
                with results.open("a") as f:
                    f.write(json.dumps(line) + "\n")


def latest(rows):
    """The last line of each (recipe, bits, text)."""
    return {(r["recipe"], r["bits"], r["text"]): r for r in rows}


def excess(r):
    return r["ppl"] - r["ppl_exact"]


def table(rows):
    best = latest(rows)
    out = ["| recipe | bits | effective 2K / 32K / 128K | WikiText-2 | +- | C4 | +- | KL | top-1 | excess / `antkv` | C4 |",
           "|---|---|---|---|---|---|---|---|---|---|---|"]
    for recipe, bits in sorted({(r["recipe"], r["bits"]) for r in rows}, key=lambda x: (x[0], -x[1])):
        w, c = best.get((recipe, bits, "WikiText-2")), best.get((recipe, bits, "C4"))
        if w is None or c is None:
            continue
        ratios = []
        for r, text in ((w, "WikiText-2"), (c, "C4")):
            base = best.get(("antkv", bits, text))
            ratios.append(f"{excess(r) / excess(base):.3f}" if base and recipe in ("best", "best-fast") else "")
        out.append(f"| `{recipe}` | {bits:g} | {w['bits_effective']:.2f} / {w['bits_effective_32k']:.2f} / "
                   f"{w['bits_effective_128k']:.3f} | {w['ppl']:.3f} | {w['ppl'] * w['nll_delta_error']:.3f} | {c['ppl']:.3f} | "
                   f"{c['ppl'] * c['nll_delta_error']:.3f} | {w['kl']:.4f} | {w['top1']:.3f} | {ratios[0]} | {ratios[1]} |")
    exact = {t: next((r["ppl_exact"] for r in rows if r["text"] == t), float("nan")) for t in ("WikiText-2", "C4")}
    w, c = (next(r for r in rows if r["text"] == text) for text in ("WikiText-2", "C4"))
    head = (f"Exact cache: WikiText-2 {exact['WikiText-2']:.3f}, C4 {exact['C4']:.3f}. {w['chunks']} chunks of 2048 tokens (C4: "
            f"{c['chunks']}), anchors by the {w['protocol']} protocol; +- is the paired standard error of the difference to exact.\n"
            f"{'; '.join(sorted({r['machine'] for r in rows}))}, {max(r['date'] for r in rows)}, `bench/quality.sh`.\n\n")
    return head + "\n".join(out) + "\n"


def picture(rows):
    """Perplexity against effective bits at 128K, one panel a text, logarithmic excess."""
    width, height, left, top = 380, 280, 56, 34
    best, body = latest(rows), []
    best = {k: r for k, r in best.items() if all((*k[:2], text) in best for text in ("WikiText-2", "C4"))}
    xs = [math.log2(r["bits_effective_128k"]) for r in best.values()]
    ys = [math.log10(max(excess(r), 1e-3)) for r in best.values()]
    x0, x1, y0, y1 = min(xs) - .2, max(xs) + .2, math.floor(min(ys)), math.ceil(max(ys))
    at_x = lambda v: (v - x0) / (x1 - x0) * width
    at_y = lambda v: height - (v - y0) / (y1 - y0) * height
    for p, text in enumerate(("WikiText-2", "C4")):
        ox = left + p * (width + 70)
        body.append(f'<g transform="translate({ox},{top})"><rect width="{width}" height="{height}" class="frame"/>'
                    f'<text x="0" y="-12" class="title">{text}: perplexity above exact</text>')
        for e in range(y0, y1 + 1):
            body.append(f'<line x1="0" x2="{width}" y1="{at_y(e):.1f}" y2="{at_y(e):.1f}" class="grid"/>'
                        f'<text x="-8" y="{at_y(e) + 4:.1f}" text-anchor="end">{10 ** e:g}</text>')
        for b in (0.5, 1, 2, 4, 8):
            if x0 <= math.log2(b) <= x1:
                x = at_x(math.log2(b))
                body.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}" class="grid"/>'
                            f'<text x="{x:.1f}" y="{height + 18}" text-anchor="middle">{b:g}</text>')
        body.append(f'<text x="{width / 2}" y="{height + 38}" text-anchor="middle">effective bits at 128K tokens</text>')
        for n, recipe in enumerate(sorted({k[0] for k in best})):
            colour = COLOURS.get(recipe, "#777")
            dots = sorted((at_x(math.log2(r["bits_effective_128k"])), at_y(math.log10(max(excess(r), 1e-3))), r)
                          for k, r in best.items() if k[0] == recipe and k[2] == text)
            body.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y, _ in dots)}" fill="none" stroke="{colour}" '
                        'stroke-width="2"/>')
            for x, y, r in dots:
                body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"><title>{recipe} {r["bits"]:g} bit: '
                            f'{r["ppl"]:.3f}</title></circle>')
            body.append(f'<text x="{width - 10}" y="{18 + 17 * n}" text-anchor="end" class="key" style="fill:{colour}">{recipe}</text>')
        body.append("</g>")
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + 2 * width + 90} {top + height + 52}" '
            'font-family="sans-serif" font-size="12"><style>text{fill:#555}.frame{fill:none;stroke:#999}.grid{stroke:#ddd}'
            '.title{font-weight:bold}.key{font-weight:bold}@media(prefers-color-scheme:dark){text{fill:#bbb}.grid{stroke:#444}}'
            "</style>" + "".join(body) + "</svg>\n")


def main():
    a = arguments()
    if a.model is not None:
        measure(a)
    rows = load(a.results / "quality.jsonl")
    if rows:
        (a.results / "quality.md").write_text(table(rows))
        (a.results / "quality.svg").write_text(picture(rows))
        print(table(rows))


if __name__ == "__main__":
    main()
