#!/bin/sh
# Outputs appear whole or not at all: refusals before work starts, interrupts, and what was there before.
. "$(dirname "$0")/lib.sh"

tiny_model "$tmp/tiny.gguf" 1
words "$tmp/text.txt" 1200 1
model="--model $tmp/tiny.gguf"
short="--text $tmp/text.txt --ctx 128 --chunks 4"
recipe="--recipe antkv --k 4x16 --v 4x16"
calibrate="$kvbook calibrate $model $short $recipe"

refuse "folder that is not there" 4 'nowhere' $calibrate -o "$work/nowhere/b.kvb"
mkdir "$tmp/folder"
refuse "output is a folder" 4 'folder' $calibrate -o "$tmp/folder"
refuse "output is a device" 4 'null' $calibrate -o /dev/null
[ -c /dev/null ] && ok "the device is still one" || fail "the device is still one" "it was replaced"
cp "$tmp/tiny.gguf" "$work/m.gguf"
refuse "output is the model" 2 'is also the input' "$kvbook" calibrate --model "$work/m.gguf" $short $recipe -o "$work/m.gguf"
same "the model is as it was" "$tmp/tiny.gguf" "$work/m.gguf"
ln "$work/m.gguf" "$work/link.gguf"
refuse "output is the model by another name" 2 'is also the input' \
    "$kvbook" calibrate --model "$work/m.gguf" $short $recipe -o "$work/link.gguf"
refuse "output is the text" 2 'is also the input' $calibrate -o "$tmp/text.txt"
if [ "$(id -u)" = 0 ]; then
    skip "folder without permission" "root may write everywhere"
else
    mkdir -m 555 "$tmp/closed"
    refuse "folder without permission" 4 'closed' $calibrate -o "$tmp/closed/b.kvb"
fi
if [ -w /dev/full ]; then
    "$kvbook" eval $model $short --json >/dev/full 2>"$err"
    code=$?
    if [ $code -eq 4 ]; then ok "eval --json to a full disk"; else fail "eval --json to a full disk" "exit code $code, expected 4"; fi
fi

# A failure after the work has begun leaves the old file.
printf 'old' >"$work/b.kvb"; printf 'old' >"$tmp/old"
refuse "text too short, the output exists" 3 . "$kvbook" calibrate $model --text "$tmp/old" --ctx 128 $recipe -o "$work/b.kvb"
same "the old output is as it was" "$tmp/old" "$work/b.kvb"
refuse "no room for the file" 4 'b\.kvb: cannot write' sh -c "ulimit -f 4; exec $calibrate -o '$work/b.kvb'"
same "the old output is as it was, without room" "$tmp/old" "$work/b.kvb"
expect "the output is replaced when all is well" 0 'wrote' $calibrate -o "$work/b.kvb"
expect "a link to the output survives" 0 'wrote' sh -c "ln -s b.kvb '$work/l.kvb' && $calibrate -o '$work/l.kvb' && [ -L '$work/l.kvb' ]"

# Ctrl-C in the middle: exit 130, no output, no temporary file. Endless work, so that the signal surely comes in time.
interrupt() { # interrupt NAME COMMAND...
    this=$1; shift
    before=$(ls -A "$work")
    # In the background a shell script's children ignore SIGINT; python gives it back.
    python3 - "$err" "$@" <<'PY'
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
with open(sys.argv[1], "wb") as err:
    process = subprocess.Popen(sys.argv[2:], stderr=err, stdout=subprocess.DEVNULL)
    time.sleep(0.7)
    running = process.poll() is None
    process.send_signal(signal.SIGINT)
    code = process.wait(60)
sys.exit(code if running else 99)
PY
    code=$?
    if [ $code -ne 130 ]; then fail "$this" "exit code $code, expected 130 (99: it ended before the signal)"
    elif [ "$(grep -c '^kvbook: error: ' "$err")" -ne 1 ]; then fail "$this" "expected one line of error"
    elif [ "$(ls -A "$work")" != "$before" ]; then fail "$this" "left a file: $(ls -A "$work")"
    else ok "$this"; fi
}
long=
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do long="$long $tmp/text.txt"; done
interrupt "interrupted calibrate" "$kvbook" calibrate $model --text $long --ctx 256 $recipe -o "$work/i.kvb"
interrupt "interrupted capture" "$kvbook" capture $model --text $long --ctx 256 -o "$work/i.kvc"
interrupt "interrupted eval" "$kvbook" eval $model --text $long --ctx 256 --book "$work/b.kvb"
done_testing

# What a file calls itself must not reach the terminal as commands to it.
odd=$(printf 'a\033[31mb\302\233c.txt')
words "$tmp/$odd" 120 1
"$kvbook" calibrate --model "$tmp/tiny.gguf" --text "$tmp/$odd" --ctx 64 --chunks 4 --recipe antkv --k 4x4 --v 4x4 -q -o "$work/odd.kvb" 2>"$err"
expect "control characters in a file's names are shown as ?" 0 'of a\?\[31mb\?c\.txt' "$kvbook" info "$work/odd.kvb"
