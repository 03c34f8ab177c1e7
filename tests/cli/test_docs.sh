#!/bin/sh
# The commands in ```sh blocks of the README, docs/formats.md and docs/cli.md, as they stand there, on a small model; the scripts of
# docs/scale.md without a scheduler; the Python of docs/serving.md; every sub-command a document names.
. "$(dirname "$0")/lib.sh"

SOURCE=$PWD
export SOURCE
case $kvbook in /*) tool=$kvbook ;; *) tool=$PWD/$kvbook ;; esac
mkdir "$tmp/bin" "$work/build" && ln -s "$tool" "$tmp/bin/kvbook" && ln -s "$tool" "$work/build/kvbook"
tiny_model "$work/model.gguf" 1
words "$work/text.txt" 400 1
words "$work/heldout.txt" 200 2
words "$work/system.txt" 2 3

# The tiny model's context is short and its forty words fill few centroids: such flags are added, the rest is the document's.
run_commands() { # run_commands FILE LEAST
    awk '/^```sh/ { on = 1; next } /^```/ { on = 0 } on' "$1" | sed -e ':a' -e '/\\$/N; s/\\\n *//; ta' -e 's/ *# .*//' >"$tmp/commands"
    count=0
    while read -r line; do
        count=$((count + 1))
        case $line in *' calibrate '* | *' eval '* | *' compare '*) line="$line --ctx 128" ;; esac
        case $line in *' calibrate '*) line="$line --k 4x8 --v 4x8" ;; esac
        if (cd "$work" && PATH=$tmp/bin:$PATH sh -c "$line") >"$out" 2>"$err" </dev/null; then
            ok "$1: $line"
        else
            fail "$1: $line" "exit code not 0"
        fi
    done <"$tmp/commands"
    if [ "$count" -ge "$2" ]; then ok "$1 has commands"; else fail "$1 has commands" "$count found"; fi
}
run_commands README.md 5
mv "$work/system.kvp" "$work/prompts.kvp"
run_commands docs/formats.md 7

ln "$work/model.gguf" "$work/M.gguf" && ln "$work/model.kvb" "$work/B.kvb"
for name in faq question; do words "$work/$name.txt" 2 4; done
words "$work/train.txt" 800 5
words "$work/test.txt" 200 6
"$kvbook" recipes show antkv | sed "s,\"name\": *\"antkv\",\"name\": \"mine\"," >"$work/mine.json"
run_commands docs/cli.md 5

# The job array of docs/scale.md, its parts one after the other; the book must be what one machine makes.
block() { awk -v want="$2" '/^```/ { on = !on; if (on) n++; next } on && n == want' "$1"; }
block docs/scale.md 1 >"$tmp/capture.sh"
block docs/scale.md 2 >"$tmp/train.sh"
mkdir "$work/parts"
sed -i 's/--max-memory 256G/--max-memory 1G --ctx 128/' "$tmp/capture.sh"
export MODEL="$work/M.gguf" TEXT="$work/train.txt" PARTS="$work/parts" BOOK="$work/scale.kvb" SLURM_CPUS_PER_TASK=2 SLURM_ARRAY_TASK_COUNT=8
for part in 1 2 3 4 5 6 7 8; do
    expect "docs/scale.md: capture.sh, part $part" 0 . env SLURM_ARRAY_TASK_ID=$part PATH="$tmp/bin:$PATH" bash "$tmp/capture.sh"
done
expect "docs/scale.md: train.sh" 0 wrote env PATH="$tmp/bin:$PATH" bash "$tmp/train.sh"
expect "docs/scale.md: one machine" 0 wrote "$kvbook" calibrate --model "$MODEL" --text "$TEXT" --recipe best --bits 1 --max-memory 1G --ctx 128 \
    -o "$work/one.kvb"
same "docs/scale.md: the same bytes as one machine" "$work/one.kvb" "$BOOK"
skip "docs/scale.md: sbatch, mpirun" "need a cluster or MPI (test_mpi.sh has the latter)"
skip "docs/methods.md: compare" "needs SmolLM2 and half an hour"

# The Python of docs/serving.md, with what a scheduler would bring.
block docs/serving.md 1 >"$tmp/serving.py"
python_with numpy
if [ -n "$python" ]; then
    {
        echo 'import numpy; ids = [7]; finished = 7; block_tables = numpy.zeros((1, 40), numpy.int32); lengths = numpy.array([10])'
        echo 'block_tables[0] = numpy.arange(40)'
        cat "$tmp/serving.py"
        echo 'print("longest", batch.longest)'
    } >"$tmp/run.py"
    expect "docs/serving.md: PageTable" 0 '^longest 11$' env PYTHONPATH=python KVBOOK_LIBRARY_DIR="$(cd "$build" && pwd)" "$python" "$tmp/run.py"
else
    skip "docs/serving.md: PageTable" "no python3 with numpy (python3-numpy); it was NOT tested"
fi

# The C of docs/packed-caches.md, in a function that has what it takes as given.
awk '/^```c$/ { inside = 1; next } /^```$/ { inside = 0 } inside' docs/packed-caches.md >"$tmp/block.c"
{
    grep '^#include' "$tmp/block.c"
    echo 'void packed(kvb_book *book, kvb_cache *cache, const uint32_t *ids, const float *state, uint32_t width);'
    echo 'void packed(kvb_book *book, kvb_cache *cache, const uint32_t *ids, const float *state, uint32_t width)'
    echo '{ kvb_error err;'
    grep -v '^#include' "$tmp/block.c"
    echo '}'
} >"$tmp/packed.c"
compiles() { ${CC:-cc} -std=c11 -Wall -Wextra -Werror -Iinclude -fsyntax-only "$1" && echo compiled; }
expect "docs/packed-caches.md: the C compiles" 0 compiled compiles "$tmp/packed.c"

# Sub-commands and flags that a document names exist.
for name in $(grep -ohE '`kvbook [a-z]+[ `]' README.md docs/*.md CONTRIBUTING.md | tr -d '`' | cut -d' ' -f2 | sort -u); do
    case " $("$kvbook" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p' | tr '\n' ' ') " in
    *" $name "*) ok "documents name the command $name" ;;
    *) grep -nE "kvbook $name " README.md docs/*.md >"$err"; fail "documents name the command $name" "there is none" ;;
    esac
done
done_testing
