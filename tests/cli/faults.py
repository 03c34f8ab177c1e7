"""faults.py SHIM FULL WORK OUTPUT... -- COMMAND...: runs a command with each of its system calls failing in turn.

Whatever fails: the command either ends well, with the outputs it always writes, or with an exit code, one line of error, and the outputs
that were there before, or the whole new ones. Nothing else may be left in the folder WORK. A call that was interrupted or short must not be noticed."""
import os, subprocess, sys

FAULTS = {"open": ["EIO"], "read": ["EIO", "EINTR", "SHORT"], "mmap": ["ENOMEM"], "pwrite": ["ENOSPC", "EINTR", "SHORT"],
          "fsync": ["EIO", "EINTR"], "close": ["EIO"], "rename": ["EIO"], "mkdir": ["EIO"], "flock": ["EINTR"]}
MUST_FAIL = {("pwrite", "ENOSPC"), ("rename", "EIO"), ("mmap", "ENOMEM"), ("read", "EIO"), ("mkdir", "EIO")}
MUST_PASS = {"EINTR", "SHORT"}
OLD = b"an earlier output\n"

shim, full, work = sys.argv[1:4]
at = sys.argv.index("--")
outputs, command = sys.argv[4:at], sys.argv[at + 1:]
bad = runs = 0


def run(fault, count=None):
    env = dict(os.environ, LD_PRELOAD=shim, OMP_NUM_THREADS="1")
    env.update({"KVB_FAULT": fault} if fault else {}, **({"KVB_FAULT_COUNT": count} if count else {}))
    p = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return p.returncode, p.stderr.decode(errors="replace")


def contents():
    return [open(o, "rb").read() if os.path.exists(o) else None for o in outputs]


def lay_out():
    """Earlier outputs, and nothing of an earlier run."""
    for name in os.listdir(work):
        path = os.path.join(work, name)
        if os.path.isdir(path):
            for inner in os.listdir(path):
                os.unlink(os.path.join(path, inner))
            os.rmdir(path)
        elif path not in keep:
            os.unlink(path)
    for o in outputs:
        with open(o, "wb") as file:
            file.write(OLD)


def complain(fault, what, err):
    global bad
    bad += 1
    print("FAIL %s: %s\n    %s" % (fault, what, err.strip()[-300:]))


keep = {os.path.join(work, n) for n in os.listdir(work)} - set(outputs)
lay_out()
counts_file = os.path.join(os.path.dirname(work), "counts")
code, err = run(None, counts_file)
if code != 0:
    sys.exit("FAIL undisturbed: exit %d: %s" % (code, err))
good, names = contents(), set(os.listdir(work))
counts = {l.split()[0]: int(l.split()[1]) for l in open(counts_file)}
for call, kinds in FAULTS.items():
    n = counts[call]
    every = range(1, n + 1) if full == "1" or n <= 6 else sorted({1, 2, n // 3, 2 * n // 3, n - 1, n})
    for kind in kinds:
        for i in every:
            fault = "%s:%d:%s" % (call, i, kind)
            lay_out()
            code, err = run(fault)
            runs += 1
            now, errors = contents(), [l for l in err.splitlines() if l.startswith("kvbook: error: ")]
            if code == 0:
                if now != good:
                    complain(fault, "ended well with other outputs", err)
                if (call, kind) in MUST_FAIL:
                    complain(fault, "was not noticed", err)
            else:
                if code < 0 or code not in (1, 2, 3, 4, 5):
                    complain(fault, "exit code %d" % code, err)
                if len(errors) != 1:
                    complain(fault, "%d lines of error" % len(errors), err)
                if kind in MUST_PASS:
                    complain(fault, "should have been tried again", err)
                # What fails after the rename (syncing the folder, looking at the counts) leaves the new file, whole.
                if any(a not in (OLD, b) for a, b in zip(now, good)):
                    complain(fault, "the earlier output is gone or half written", err)
            left = set(os.listdir(work)) - names
            if any(not n.endswith(".ckpt") or "is kept in" not in err for n in left):
                complain(fault, "left behind: %s" % sorted(left), err)
print("%d runs, calls: %s" % (runs, counts))
sys.exit(bad != 0)
