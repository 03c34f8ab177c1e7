#!/bin/sh
# calibrate --tune that is stopped while it tunes, and goes on: inside tuning, with neither capture nor training done again, and with the
# bytes of a job that was left alone. KILLS=100 tests/cli/test_tune_resume.sh for the long run.
. "$(dirname "$0")/lib.sh"

tiny_model "$tmp/tiny.gguf" 1
words "$tmp/train.txt" 160 1
job="--model $tmp/tiny.gguf --text $tmp/train.txt --ctx 128 --chunks 12 --recipe antkv --k 4x16 --v 4x16 --threads 1"

# stop SIGNAL STEPS DIR COMMAND...: runs the command, and sends SIGNAL once the state of tuning was saved STEPS times (each save is a new file).
cat >"$tmp/stop.py" <<'P'
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
state, saves, seen = sys.argv[3] + "/tuning.kvck", int(sys.argv[2]), set()
p = subprocess.Popen(sys.argv[4:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
while p.poll() is None and len(seen) < saves:
    try:
        s = os.stat(state)
        seen.add((s.st_ino, s.st_mtime_ns))
    except FileNotFoundError:
        time.sleep(0.0002)
p.send_signal(getattr(signal, sys.argv[1]))
err = p.communicate()[1].decode()
print(p.returncode, err)
P
stop() { python3 "$tmp/stop.py" "$@" >"$tmp/stopped" 2>&1; }

goes_on() { # goes_on NAME TUNE-FLAGS...
    name=$1; shift
    "$kvbook" calibrate $job "$@" -q -o "$work/whole.kvb" 2>"$err"
    for signal in SIGINT SIGKILL; do
        stop "$signal" 2 "$work/ck" "$kvbook" calibrate $job "$@" --checkpoint "$work/ck" -o "$work/again.kvb"
        case $signal in SIGINT) want=130 ;; *) want=-9 ;; esac
        if grep -q "^$want " "$tmp/stopped" && [ -e "$work/ck/tuning.kvck" ] && [ -e "$work/ck/capture.kvc" ]; then
            ok "$name, $signal while tuning: its state and the capture are kept"
        else
            fail "$name, $signal while tuning: its state and the capture are kept" "$(cat "$tmp/stopped"; ls "$work/ck")"
        fi
        # What must not be made again cannot: the capture is the same file, and it is read only.
        before=$(stat -c '%i %Y' "$work/ck/capture.kvc")
        stop "$signal" 1 "$work/ck" "$kvbook" calibrate $job "$@" --checkpoint "$work/ck" --resume -o "$work/again.kvb"
        after=$(stat -c '%i %Y' "$work/ck/capture.kvc" 2>/dev/null)
        if [ "$before" = "$after" ]; then ok "$name, $signal: not captured again"; else fail "$name, $signal: not captured again" "$before, then $after"; fi
        expect "$name, $signal: goes on inside tuning" 0 'went on after step [1-9][0-9]* of' \
            "$kvbook" calibrate $job "$@" --checkpoint "$work/ck" --resume -o "$work/again.kvb"
        same "$name, $signal: the same bytes" "$work/whole.kvb" "$work/again.kvb"
        if [ -e "$work/ck" ]; then fail "$name, $signal: the checkpoint goes" "it is still there"; else ok "$name, $signal: the checkpoint goes"; fi
    done
}
goes_on kl --tune 6 --tune-rate 0.01
goes_on attention --tune 8 --tune-objective attention

# Of another tuning.
stop SIGINT 2 "$work/ck" "$kvbook" calibrate $job --tune 6 --checkpoint "$work/ck" -o "$work/x.kvb"
refuse "another rate" 6 'cannot go on: --tune was "6 of kl, batch 2, rate 0.05' \
    "$kvbook" calibrate $job --tune 6 --tune-rate 0.01 --checkpoint "$work/ck" --resume -o "$work/x.kvb"
refuse "no tuning any more" 6 'cannot go on: --tune was' "$kvbook" calibrate $job --checkpoint "$work/ck" --resume -o "$work/x.kvb"
printf 'x' | dd of="$work/ck/tuning.kvck" bs=1 seek=100 conv=notrunc 2>/dev/null
refuse "a damaged state" 3 'tuning.kvck: is damaged: its size or checksum' \
    "$kvbook" calibrate $job --tune 6 --checkpoint "$work/ck" --resume -o "$work/x.kvb"
rm -r "$work/ck"

# At moments of chance.
start=$(date +%s%N)
"$kvbook" calibrate $job --tune 6 --tune-rate 0.01 -q -o "$work/whole.kvb"
took=$(awk -v a="$start" -v b="$(date +%s%N)" 'BEGIN { print (b - a) / 1e9 }')
if python3 tests/cli/killed.py "${KILLS:-6}" 3 "$work/killed.kvb" "$took" "$kvbook" calibrate $job --tune 6 --tune-rate 0.01 >"$out" 2>"$err"; then
    ok "killed ${KILLS:-6} times: $(cat "$out")"
    same "the same bytes after kills" "$work/whole.kvb" "$work/killed.kvb"
else
    fail "killed ${KILLS:-6} times" "$(cat "$out" "$err")"
fi
done_testing
