#!/bin/sh
# Several processes write the bytes of one. In a build without MPI (make MPI=1 has it) that is refused by name.
. "$(dirname "$0")/lib.sh"

tiny_model "$tmp/tiny.gguf" 1
words "$tmp/train.txt" 400 1
input="--model $tmp/tiny.gguf --text $tmp/train.txt --ctx 128 --chunks 24"
job="$input --recipe best --bits 2 --threads 1"

# As mpirun would start it.
one_of() { env OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_RANK=0 "$@"; }
refuse "a command that shares no work" 2 'one of 4 processes; of all commands calibrate alone' \
    one_of "$kvbook" capture $input -o "$work/x.kvc"
if ! grep -q KVB_MPI "$build/flags"; then
    refuse "several processes without MPI" 2 'this build has no MPI: build it with make MPI=1' one_of "$kvbook" calibrate $job -o "$work/x.kvb"
    done_testing
fi
if ! command -v mpirun >/dev/null 2>&1; then
    skip "calibration by several processes" "no mpirun (Debian: openmpi-bin)"
    done_testing
fi
root=$([ "$(id -u)" != 0 ] || echo --allow-run-as-root)
ranks() { n=$1; shift; mpirun $root --oversubscribe --bind-to none -n "$n" "$@"; } # ranks N COMMAND...

less=$(less_memory 1.5 $input --recipe best --bits 1 --allocate)
"$kvbook" calibrate $job -q -o "$work/alone.kvb"
"$kvbook" calibrate $input --recipe best --bits 1 --allocate --max-memory "$less" --tune 1 --threads 1 -q -o "$work/allocated.kvb"
"$kvbook" calibrate $input --recipe kivi --bits 2 --threads 1 -q -o "$work/kivi.kvb"
for n in 1 2 4; do
    expect "$n processes" 0 'wrote' ranks $n "$kvbook" calibrate $job -o "$work/$n.kvb"
    same "$n processes: the bytes of one" "$work/alone.kvb" "$work/$n.kvb"
    [ "$(grep -c 'relative error' "$err")" = 1 ] && ok "$n processes speak with one voice" || fail "$n processes speak with one voice" "$(cat "$err")"
done
expect "sampled, allocated and tuned by 3" 0 'wrote' ranks 3 "$kvbook" calibrate $input --recipe best --bits 1 --allocate --max-memory "$less" --tune 1 \
    --threads 1 -o "$work/3.kvb"
same "sampled, allocated and tuned by 3: the bytes of one" "$work/allocated.kvb" "$work/3.kvb"
for recipe in cq kvquant skvq; do
    "$kvbook" calibrate $input --recipe $recipe --bits 2 --threads 1 -q -o "$work/$recipe.kvb"
    expect "$recipe by 3" 0 'wrote' ranks 3 "$kvbook" calibrate $input --recipe $recipe --bits 2 --threads 1 -o "$work/g.kvb"
    same "$recipe by 3: the bytes of one" "$work/$recipe.kvb" "$work/g.kvb"
done
expect "nothing to train, by 2" 0 'wrote' ranks 2 "$kvbook" calibrate $input --recipe kivi --bits 2 --threads 1 -o "$work/k.kvb"
same "nothing to train, by 2: the bytes of one" "$work/kivi.kvb" "$work/k.kvb"
expect "checkpointed by 2" 0 'wrote' ranks 2 "$kvbook" calibrate $job --checkpoint "$work/ck" -o "$work/c.kvb"
same "checkpointed by 2: the bytes of one" "$work/alone.kvb" "$work/c.kvb"
[ ! -e "$work/ck" ] && ok "the checkpoint goes" || fail "the checkpoint goes" "$(ls "$work/ck")"

# Errors of one are the job's, said once.
expect "a model that is not there" 4 '^kvbook: error: ' ranks 2 "$kvbook" calibrate --model "$tmp/no.gguf" --text "$tmp/train.txt" \
    --recipe best --bits 1 -o "$work/x.kvb"
[ "$(grep -c '^kvbook: error' "$err")" = 1 ] && ok "one line of error" || fail "one line of error" "$(cat "$err")"
expect "more processes than chunks" 2 'expected at least one each' ranks 4 "$kvbook" calibrate --model "$tmp/tiny.gguf" --text "$tmp/train.txt" \
    --ctx 128 --chunks 3 --recipe best --k 4x16 --v 4x16 -o "$work/x.kvb"
expect "--shard by several" 2 'share out the text by themselves' ranks 2 "$kvbook" calibrate $job --shard 1/2 -o "$work/x.kvc"

# A process that dies, once the first layer is saved: the job ends with an error, the checkpoint serves another number of processes.
many="$input --recipe antkv --k 4x256 --v 4x256 --threads 1"
"$kvbook" calibrate $many -q -o "$work/many.kvb" 2>"$err"
python3 - "$work/dead" "$kvbook" mpirun $root --oversubscribe --bind-to none -n 2 "$kvbook" calibrate $many --checkpoint "$work/dead" \
    -o "$work/d.kvb" >"$out" 2>&1 <<'P'
import glob, os, signal, subprocess, sys, time
folder, kvbook = sys.argv[1:3]
p = subprocess.Popen(sys.argv[3:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
def victim():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if b"OMPI_COMM_WORLD_RANK=1\0" in open("/proc/%s/environ" % pid, "rb").read() and \
                    folder.encode() in open("/proc/%s/cmdline" % pid, "rb").read():
                return int(pid)
        except OSError:
            pass
while p.poll() is None and len(glob.glob(folder + "/capture-*.kvc")) < 2:
    time.sleep(0.001)
pid = victim()
if pid is not None:
    os.kill(pid, signal.SIGKILL)
err = p.communicate()[1].decode()
print(p.returncode, pid, err)
P
if grep -Eq '^[1-9][0-9]* [0-9]' "$out" && [ ! -e "$work/d.kvb" ] && [ -e "$work/dead/job.json" ]; then
    ok "a process that dies ends the job, without a book"
    cp -r "$work/dead" "$work/other"
    expect "the checkpoint serves a process alone" 0 'going on from' "$kvbook" calibrate $many --checkpoint "$work/other" --resume -o "$work/o.kvb"
    same "the bytes of one from the checkpoint of two" "$work/many.kvb" "$work/o.kvb"
    expect "the checkpoint serves 2 again" 0 'going on from' ranks 2 "$kvbook" calibrate $many --checkpoint "$work/dead" --resume -o "$work/d.kvb"
    same "the bytes of one after a death" "$work/many.kvb" "$work/d.kvb"
else
    fail "a process that dies ends the job, without a book" "$(head -n 3 "$out"; ls "$work" "$work/dead")"
fi
done_testing
