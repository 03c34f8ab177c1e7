#!/bin/sh
# --max-memory: the peak of the process stays below it, at any length of the text.
. "$(dirname "$0")/lib.sh"

cat >"$tmp/peak.py" <<'P'
"""peak.py LIMIT_MIB COMMAND...: exits with the command's code; prints its peak resident memory in MiB, and fails (99) above LIMIT_MIB."""
import os, subprocess, sys
p = subprocess.Popen(sys.argv[2:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(p.pid, 0)
peak = used.ru_maxrss / 1024
print("peak %.1f MiB" % peak)
sys.exit(os.waitstatus_to_exitcode(status) or (99 if peak > float(sys.argv[1]) else 0))
P
tiny_model "$tmp/tiny.gguf" 1
words "$tmp/text.txt" 16000 1
peak() { # peak MIB COMMAND...
    python3 "$tmp/peak.py" "$@"
}
# The sanitizers' own memory would be measured.
if grep -q 'fsanitize=' "$build/flags"; then skip "peak memory" "a build with sanitizers"; done_testing; fi
job="--model $tmp/tiny.gguf --text $tmp/text.txt --ctx 128 --threads 2"
for recipe in 'best --bits 2' 'antkv --bits 1 --k 4x16 --v 4x16' 'skvq --bits 2'; do
    for chunks in 400 800; do
        expect "$recipe, $chunks chunks in 48M" 0 '^peak' peak 48 "$kvbook" calibrate $job --chunks $chunks --recipe $recipe --max-memory 48M -o "$work/m.kvb"
        grep -q 'sampling [0-9]* of' "$err" && ok "$recipe, $chunks chunks: sampled" || fail "$recipe, $chunks chunks: sampled" "it was not"
    done
done
# Without the limit it is more: the measure can fail.
"$kvbook" calibrate $job --chunks 800 --recipe best --bits 2 --dry-run -o "$work/m.kvb" >"$out" 2>"$err"
expect "without a limit it takes more" 99 '^peak' peak 48 "$kvbook" calibrate $job --chunks 800 --recipe best --bits 2 -o "$work/m.kvb"
rm -f "$work"/*
refuse "less than the model takes" 5 'too little for model, text, one chunk.s pass and a row of each of 400 chunks, about' \
    "$kvbook" calibrate $job --chunks 400 --recipe best --bits 2 --max-memory 2M -o "$work/m.kvb"
done_testing
