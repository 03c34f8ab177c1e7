# Helpers of the command-line tests, sourced by each: one line a check, "ok NAME", "FAIL NAME ..." or "SKIP NAME ...".
# Scripts run from the repository's root; $KVB_BUILD is the build folder.
set -u
cd "$(dirname "$0")/../.."
build=${KVB_BUILD:-build}
kvbook=$build/kvbook
# Tiny models on a busy machine: threads that spin while they wait would cost more than they compute.
export OMP_WAIT_POLICY=passive
unset NO_COLOR SOURCE_DATE_EPOCH
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
failures=0
out=$tmp/stdout
err=$tmp/stderr
work=$tmp/work # where outputs go: what is left there after a failure is a defect
mkdir "$work"

ok() { echo "ok $1"; }
fail() { # fail NAME WHY
    echo "FAIL $1: $2"
    sed 's/^/    /' "$err" | head -n 5
    failures=$((failures + 1))
}
skip() { echo "SKIP $1: $2"; }
done_testing() { [ "$failures" -eq 0 ]; exit; }

# expect NAME CODE PATTERN COMMAND...: the exit code, and a pattern (grep -E) that stdout and stderr must hold together.
expect() {
    this=$1; want=$2; pattern=$3; shift 3
    "$@" >"$out" 2>"$err" </dev/null
    got=$?
    if [ "$got" -ne "$want" ]; then
        fail "$this" "exit code $got, expected $want"
    elif ! cat "$out" "$err" | grep -Eq -- "$pattern"; then
        fail "$this" "nothing printed matches: $pattern"
    else
        ok "$this"
    fi
}

# refuse NAME CODE PATTERN COMMAND...: fails with one line of error that matches, prints no data and leaves no file.
refuse() {
    this=$1; want=$2; pattern=$3; shift 3
    before=$(ls -A "$work")
    "$@" >"$out" 2>"$err" </dev/null
    got=$?
    if [ "$got" -ne "$want" ]; then
        fail "$this" "exit code $got, expected $want"
    elif [ "$(grep -c '^kvbook: error: ' "$err")" -ne 1 ] || ! tail -n 1 "$err" | grep -q '^kvbook: error: '; then
        fail "$this" "expected one line of error, the last"
    elif ! tail -n 1 "$err" | grep -Eq -- "$pattern"; then
        fail "$this" "the error does not match: $pattern"
    elif [ -s "$out" ]; then
        fail "$this" "printed data on stdout"
    elif [ "$(ls -A "$work")" != "$before" ]; then
        fail "$this" "left a file behind: $(ls -A "$work" | tr '\n' ' ')"
    else
        ok "$this"
    fi
}

# same NAME FILE FILE
same() {
    if cmp -s "$2" "$3"; then ok "$1"; else fail "$1" "$2 and $3 differ"; fi
}

# json NAME FILE EXPRESSION: a Python expression over `d`, the object of the file's first line or of the whole file.
json() {
    if python3 - "$2" "$3" 2>"$err" <<'PY'
import json, math, sys
text = open(sys.argv[1]).read()
try:
    d = json.loads(text)
except ValueError:
    d = json.loads(text.splitlines()[0])
sys.exit(0 if eval('(' + sys.argv[2] + ')') else 1)
PY
    then ok "$1"; else fail "$1" "not true: $3"; fi
}

# Text that no tokenizer finds empty: words N..M of a fixed sequence.
words() { # words FILE LINES SEED
    awk -v lines="$2" -v seed="$3" 'BEGIN { srand(seed); for (i = 0; i < lines; i++) { s = ""; for (j = 0; j < 12; j++) {
        n = int(rand() * 40); s = s sprintf("%c%c%c ", 97 + n % 26, 97 + (n * 7) % 26, 97 + (n * 11) % 26) } print s } }' >"$1"
}

# less_memory MIB ARGS...: a --max-memory of so many MiB less than `calibrate ARGS` would take.
less_memory() {
    less=$1; shift
    "$kvbook" calibrate "$@" --dry-run -o "$work/dry.kvb" 2>/dev/null </dev/null |
        awk -v less="$less" '/^memory/ { k = $2 * ($3 == "GiB" ? 1048576 : 1024); printf "%dK", k - less * 1024 }'
}

tiny_model() { # tiny_model FILE SEED
    "$build/tests/make_tiny_gguf" "$1" "$2"
}

# python_with MODULES: sets $python to one that has them, or to nothing. Debian's own has what `make check` installs, whatever stands first in PATH.
python_with() {
    for python in python3 /usr/bin/python3 ""; do
        [ -z "$python" ] || ! "$python" -c "import $1" 2>/dev/null || break
    done
}

# A target of the Makefile, with the flags that the build was made with, so that nothing else is made anew.
remake() { # remake TARGET [VARIABLE=VALUE]...
    make -s "$@" BUILD="$build" $(grep -o -m 1 -e ' -Werror ' "$build/flags" | sed 's/ *-Werror */WERROR=-Werror/')
}
