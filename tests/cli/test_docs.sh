#!/bin/sh
# The commands in ```sh blocks of the README and docs/formats.md, as they stand there, on a small model; every sub-command a document names.
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
    awk '/^```sh/ { on = 1; next } /^```/ { on = 0 } on' "$1" | sed 's/ *# .*//' >"$tmp/commands"
    count=0
    while read -r line; do
        count=$((count + 1))
        case $line in *' calibrate '* | *' eval '*) line="$line --ctx 128" ;; esac
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

# Sub-commands and flags that a document names exist.
for name in $(grep -ohE '`kvbook [a-z]+[ `]' README.md docs/*.md CONTRIBUTING.md | tr -d '`' | cut -d' ' -f2 | sort -u); do
    case " $("$kvbook" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p' | tr '\n' ' ') " in
    *" $name "*) ok "documents name the command $name" ;;
    *) grep -nE "kvbook $name " README.md docs/*.md >"$err"; fail "documents name the command $name" "there is none" ;;
    esac
done
done_testing
