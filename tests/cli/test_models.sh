#!/bin/sh
# Every architecture against what transformers computed (tests/golden/models), and folders with one thing wrong. Runs under
# sanitizers too.
. "$(dirname "$0")/lib.sh"
: >"$err"

python3 tests/reference/check.py --build "$build" || fail "architectures" "see above"
python3 tests/reference/refused.py --build "$build" || fail "broken folders" "see above"
done_testing
