#!/bin/sh
# Jobs that are killed and go on later: the same bytes as if they had never been, and nothing of another job.
# KILLS=100 tests/cli/test_resume.sh for the long run.
. "$(dirname "$0")/lib.sh"

tiny_model "$tmp/tiny.gguf" 1
words "$tmp/train.txt" 400 1
model="--model $tmp/tiny.gguf"
input="$model --text $tmp/train.txt --ctx 128 --chunks 24"
job="$input --recipe best --bits 2 --max-memory 64M --threads 1"

expect "undisturbed" 0 'wrote' "$kvbook" calibrate $job -o "$work/whole.kvb"
expect "with a checkpoint" 0 'wrote' "$kvbook" calibrate $job --checkpoint "$work/ck" -o "$work/kept.kvb"
same "the same bytes with a checkpoint" "$work/whole.kvb" "$work/kept.kvb"
if [ -e "$work/ck" ]; then fail "the checkpoint goes when the book is there" "it is still there"; else ok "the checkpoint goes when the book is there"; fi

start=$(date +%s%N)
"$kvbook" calibrate $job -q -o "$work/timed.kvb"
took=$(awk -v a="$start" -v b="$(date +%s%N)" 'BEGIN { print (b - a) / 1e9 }')
if python3 tests/cli/killed.py "${KILLS:-8}" 1 "$work/killed.kvb" "$took" "$kvbook" calibrate $job >"$out" 2>"$err"; then
    ok "killed ${KILLS:-8} times"
    same "the same bytes after kills" "$work/whole.kvb" "$work/killed.kvb"
else
    fail "killed ${KILLS:-8} times" "$(cat "$out" "$err")"
fi
ls "$work" | grep -v '^[a-z]*\.kvb$' >"$tmp/left" && fail "nothing is left behind" "$(cat "$tmp/left")" || ok "nothing is left behind"

# Training alone.
"$kvbook" capture $input --sensitivity 8 -q -o "$work/c.kvc"
expect "train" 0 'wrote' "$kvbook" train "$work/c.kvc" --recipe best --bits 2 -o "$work/t.kvb"
if python3 tests/cli/killed.py 4 2 "$work/tk.kvb" "$took" "$kvbook" train "$work/c.kvc" --recipe best --bits 2 >"$out" 2>"$err"; then
    same "train: the same bytes after kills" "$work/t.kvb" "$work/tk.kvb"
else
    fail "train: killed" "$(cat "$out" "$err")"
fi

# A checkpoint that a run left: stopped after the first layer that it saved.
stop() { # stop DIR COMMAND...
    dir=$1; shift
    python3 - "$dir" "$@" <<'P'
import glob, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
p = subprocess.Popen(sys.argv[2:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
while p.poll() is None and not glob.glob(sys.argv[1] + "/layer-*.kvck"):
    time.sleep(0.0005)
p.send_signal(signal.SIGINT)
err = p.communicate()[1].decode()
print(p.returncode, err)
P
}
fewer="$model --text $tmp/train.txt --ctx 128 --chunks 20 --recipe antkv --k 4x256 --v 4x256 --threads 1"
many="$input --recipe antkv --k 4x256 --v 4x256 --threads 1"
stop "$work/left" "$kvbook" calibrate $many --checkpoint "$work/left" -o "$work/l.kvb" >"$out" 2>&1
if grep -q '^130 ' "$out" && grep -q 'the same command with --resume goes on from it' "$out"; then
    ok "Ctrl-C saves, says so, and exits with 130"
    refuse "a checkpoint in the way" 2 'go on with it \(--resume\), delete the folder' \
        "$kvbook" calibrate $many --checkpoint "$work/left" -o "$work/l.kvb"
    refuse "another recipe" 6 'cannot go on: .*"' "$kvbook" calibrate $input --recipe cq --bits 2 --checkpoint "$work/left" --resume -o "$work/l.kvb"
    refuse "another seed" 6 'cannot go on: --seed was "1" and is now "2"' \
        "$kvbook" calibrate $many --seed 2 --checkpoint "$work/left" --resume -o "$work/l.kvb"
    refuse "other chunks" 6 'cannot go on: --chunks' "$kvbook" calibrate $fewer --checkpoint "$work/left" --resume -o "$work/l.kvb"
    words "$tmp/other.txt" 400 7
    refuse "another text" 6 'cannot go on: --text' \
        "$kvbook" calibrate $model --text "$tmp/other.txt" --ctx 128 --chunks 24 --recipe antkv --k 4x256 --v 4x256 \
        --checkpoint "$work/left" --resume -o "$work/l.kvb"
    cp -r "$work/left" "$work/hurt"
    printf 'x' | dd of="$(ls "$work"/hurt/layer-*.kvck | head -n 1)" bs=1 seek=100 conv=notrunc 2>/dev/null
    refuse "a damaged record" 3 'is damaged: its size or checksum' \
        "$kvbook" calibrate $many --checkpoint "$work/hurt" --resume -o "$work/l.kvb"
    rm -r "$work/hurt"
    expect "goes on" 0 'going on from' "$kvbook" calibrate $many --checkpoint "$work/left" --resume -o "$work/l.kvb"
    "$kvbook" calibrate $many -q -o "$work/m.kvb"
    same "the same bytes after Ctrl-C" "$work/l.kvb" "$work/m.kvb"
else
    fail "Ctrl-C saves, says so, and exits with 130" "$(cat "$out")"
fi
mkdir "$work/foreign" && touch "$work/foreign/thesis.tex"
refuse "a folder with other things" 2 'holds "thesis.tex", which is no part of a checkpoint' \
    "$kvbook" calibrate $many --checkpoint "$work/foreign" -o "$work/x.kvb"
rm -r "$work/foreign"
done_testing
