#!/bin/sh
# One table of k-means speed: `kvbook bench kmeans` (against FAISS where libfaiss-dev is there, else the plain build), then,
# where present, the prototype in ../shared/prototypes and the faiss-cpu wheel beside ours (bench/kmeans_faiss.py).
#
#   bench/kmeans_table.sh [--quick]        PYTHON=python3 with numpy and faiss-cpu; OUT=bench/results/kmeans-table-DATE.txt
#                                        BUDGET=20 seconds a cell of the wheel, about
set -eu
cd "$(dirname "$0")/.."
quick=${1:-}
[ -z "$quick" ] || [ "$quick" = --quick ] || { echo "kmeans_table.sh: found $quick, expected --quick or nothing" >&2; exit 2; }
python=${PYTHON:-python3}
out=${OUT:-bench/results/kmeans-table-$(date +%F).txt}
faiss=0
if printf '#include <faiss/Clustering.h>\n' | c++ -E -x c++ - >/dev/null 2>&1; then faiss=1; fi
build=build
[ $faiss = 0 ] || build=build/faiss
# Threads that spin after their work would slow whoever runs next.
export OMP_WAIT_POLICY=passive
make -s -j2 FAISS=$faiss BUILD=$build $build/kvbook >/dev/null
make -s -j2 build/libkvb-kmeans.a >/dev/null
table=$(mktemp)
trap 'rm -f "$table"' EXIT
{
    echo "date      $(date +%F)"
    echo "machine   $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) cores"
    echo "load      $(uptime | sed 's/.*load average: //') (1, 5 and 15 minutes) before the run"
    echo "commit    $(git describe --always --dirty)"
    echo "command   bench/kmeans_table.sh${quick:+ $quick}"
    echo
    echo "kvbook bench kmeans${quick:+ $quick}"
    $build/kvbook bench kmeans $quick
    echo
    if "$python" -c 'import faiss, numpy' >/dev/null 2>&1; then
        prototype=", without the prototype (not here)"
        [ ! -e ../shared/prototypes/km.h ] || prototype=" and the prototype"
        echo "the faiss-cpu wheel$prototype, beside ours (bench/kmeans_faiss.py${quick:+ $quick} --budget ${BUDGET:-20})"
        "$python" bench/kmeans_faiss.py $quick --budget "${BUDGET:-20}"
    else
        echo "SKIP the faiss-cpu wheel and the prototype: $(basename "$python") has no faiss and numpy (pip install numpy faiss-cpu)"
    fi
    echo
    echo "load      $(uptime | sed 's/.*load average: //') after it"
} >"$table" # a failure leaves the old table
cp "$table" "$out"
echo "kmeans_table.sh: wrote $out" >&2
