#!/usr/bin/env python3
"""Every architecture, from a Hugging Face folder and from GGUF, against what `transformers` computed.

check.py [--build BUILD] [--against golden|transformers] [--write]: one line a check, "ok ..." or "FAIL ...".

`golden` (the default, standard library only) compares with tests/golden/models/*.bin, a sample of logits, keys before RoPE and
values; `transformers` (make check-models) runs that library and compares everything; --write makes the golden files anew out
of it. Tolerance: 1e-3 absolute; measured differences are printed."""
import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from tiny import CASES, VOCAB, token_ids, write_folder, write_gguf, write_vision_folder  # noqa: E402
from tokenizers_tiny import TEXTS, TOKENIZERS  # noqa: E402

GOLDEN = os.path.join(HERE, "..", "golden", "models")
TOKENS, LIMIT = 24, 1e-3
# Of logits the last rows, of keys and values every fifth token: enough to see a slip, small enough to commit.
LOGIT_ROWS, KV_STEP = range(TOKENS - 2, TOKENS), range(3, TOKENS, 5)
failures = 0


def say(good, name, why=""):
    global failures
    failures += not good
    print("%s %s%s" % ("ok" if good else "FAIL", name, ": " + why if why else ""))


def probe(build, model, work):
    """logits [T][V] and, per layer, keys and values [G][T][D] as lists."""
    out = os.path.join(work, "probe.bin")
    command = [os.path.join(build, "tests", "model_probe"), model, out] + [str(i) for i in token_ids(TOKENS)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        raise RuntimeError(run.stderr.strip())
    raw = open(out, "rb").read()
    layers, heads, dim, tokens, vocab = struct.unpack_from("<5I", raw)
    x = struct.unpack("<%df" % ((len(raw) - 20) // 4), raw[20:])
    return layers, heads, dim, x[:tokens * vocab], x[tokens * vocab:]


def swap_halves(x, dim):
    """Neighbouring channels of each head, as GGUF's llama has them, back to halves."""
    out = []
    for at in range(0, len(x), dim):
        out += x[at:at + dim:2] + x[at + 1:at + dim:2]
    return out


def sample(shape, logits, kv, interleaved=False):
    layers, heads, dim = shape
    out = [v for t in LOGIT_ROWS for v in logits[t * VOCAB:(t + 1) * VOCAB]]
    size = heads * TOKENS * dim
    for part in range(2 * layers):
        x = list(kv[part * size:(part + 1) * size])
        if interleaved and part % 2 == 0:
            x = swap_halves(x, dim)
        out += [v for h in range(heads) for t in KV_STEP for v in x[(h * TOKENS + t) * dim:(h * TOKENS + t + 1) * dim]]
    return out


def distance(a, b):
    if len(a) != len(b):
        return float("inf")
    return max(abs(x - y) if x == x and y == y else float("inf") for x, y in zip(a, b))


def compare(name, got, want):
    worst = distance(got, want)
    say(worst < LIMIT, name, "largest difference %.2g" % worst)


def check_model(args, name, c, want, whole, work):
    """want: a sample, or (whole) everything."""
    forms = ["folder"] + (["gguf"] if c["gguf"] else [])
    for form in forms:
        path = os.path.join(work, name + ("" if form == "folder" else ".gguf"))
        (write_folder if form == "folder" else write_gguf)(c, path)
        try:
            layers, heads, dim, logits, kv = probe(args.build, path, work)
        except RuntimeError as e:
            say(False, "%s from %s" % (name, form), str(e))
            continue
        interleaved = form == "gguf" and c["gguf"]["arch"] == "llama"
        got = sample((layers, heads, dim), logits, kv, interleaved)
        if whole is not None:
            logits_want, kv_want = whole
            say(distance(logits, logits_want) < LIMIT, "%s from %s, all logits" % (name, form))
            if not interleaved:
                say(distance(kv, kv_want) < LIMIT, "%s from %s, all keys and values" % (name, form))
        compare("%s from %s" % (name, form), got, want)


def check_folder(args, name, folder, want, work):
    """Another way to write the folder of a case."""
    try:
        layers, heads, dim, logits, kv = probe(args.build, folder, work)
    except RuntimeError as e:
        say(False, name, str(e))
        return
    compare(name, sample((layers, heads, dim), logits, kv), want)


def check_tokenizer(args, name, want, work):
    """want: {"bos": [...], "ids": [[...], ...]}"""
    path = os.path.join(work, "tokenizer-" + name)
    c = dict(CASES["llama"], tokenizer=name)
    write_folder(c, path)
    files = []
    for i, text in enumerate(TEXTS):
        files.append(os.path.join(work, "text%d" % i))
        with open(files[-1], "wb") as f:
            f.write(text.encode())
    # An empty file is refused before it is tokenised.
    files, expected = zip(*[(f, w) for f, w, t in zip(files, want["ids"], TEXTS) if t])
    command = [os.path.join(args.build, "tests", "model_probe"), path, "--tokens"] + list(files)
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        say(False, "tokenizer.json, " + name, run.stderr.strip())
        return
    lines = run.stdout.splitlines()
    say(lines[0] == want["head"], "tokenizer.json, %s: special ids" % name, lines[0])
    got = [[int(i) for i in line.split()] for line in lines[1:]]
    bad = [(t, g, w) for t, g, w in zip([t for t in TEXTS if t], got, expected) if g != w]
    say(not bad and len(got) == len(expected), "tokenizer.json, %s: ids of %d texts" % (name, len(expected)),
        "%r gives %s, expected %s" % bad[0] if bad else "")


def read_golden(name):
    raw = open(os.path.join(GOLDEN, name + ".bin"), "rb").read()
    return list(struct.unpack("<%df" % (len(raw) // 4), raw))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", default="build")
    parser.add_argument("--against", choices=("golden", "transformers"), default="golden")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    reference = None
    if args.write or args.against == "transformers":
        import transformers_reference as reference
    with tempfile.TemporaryDirectory() as work:
        for name, c in CASES.items():
            whole = None
            if reference is not None:
                folder = os.path.join(work, "reference-" + name)
                write_folder(c, folder)
                shape, logits, kv = reference.run(folder, token_ids(TOKENS))
                whole, want = (logits, kv), sample(shape, logits, kv)
                if args.write:
                    with open(os.path.join(GOLDEN, name + ".bin"), "wb") as f:
                        f.write(struct.pack("<%df" % len(want), *want))
                compare("%s, the committed golden file" % name, read_golden(name), want)
            else:
                want = read_golden(name)
            check_model(args, name, c, want, whole, work)
            if name == "gemma3":
                vision = os.path.join(work, "vision")
                write_vision_folder(c, vision)
                check_folder(args, "gemma3 inside a model that sees", vision, want, work)
            if reference is not None:
                saved = os.path.join(work, "saved-" + name)
                reference.resave(folder, saved)
                check_folder(args, name + " as transformers saves it", saved, want, work)
        golden_ids = os.path.join(GOLDEN, "tokens.json")
        if reference is not None:
            ids = {n: reference.tokenise(make(), TEXTS) for n, make in TOKENIZERS.items()}
            if args.write:
                with open(golden_ids, "w") as f:
                    json.dump(ids, f, indent=0)
                    f.write("\n")
            say(json.load(open(golden_ids)) == ids, "the committed golden tokens")
        else:
            ids = json.load(open(golden_ids))
        for name in TOKENIZERS:
            check_tokenizer(args, name, ids[name], work)
    return failures != 0


if __name__ == "__main__":
    sys.exit(main())
