#!/bin/sh
# `make check`: everything that must hold before a commit, in the order that fails soonest.
set -eu
cd "$(dirname "$0")/.."
jobs=$(nproc)
make -j"$jobs" WERROR=-Werror all tests
passed=0
failed=0
add() { # add BUILD
    read -r ok bad skip <"$1/test-counts"
    passed=$((passed + ok)); failed=$((failed + bad))
}
# The real model is fetched once; without a network its tests say that they are skipped.
KVB_TEST_MODEL=${KVB_TEST_MODEL:-$(tools/fetch_model.sh || true)}
export KVB_TEST_MODEL
status=0
rm -f build/test-counts build/asan/test-counts build/faiss/test-counts build/mpi/test-counts
BUILD=build tests/run.sh || status=1
add build
echo "== the same unit tests, corpora and model files under AddressSanitizer and UndefinedBehaviorSanitizer"
make -j"$jobs" WERROR=-Werror SAN=address,undefined BUILD=build/asan OPT=-O1 tests >/dev/null
BUILD=build/asan SCRIPTS=tests/cli/test_models.sh tests/run.sh || status=1
add build/asan
if [ -e /usr/include/faiss/Clustering.h ]; then
    echo "== k-means by FAISS"
    make -j"$jobs" WERROR=-Werror FAISS=1 BUILD=build/faiss build/faiss/kvbook build/faiss/tests/kmeans/test_kmeans_faiss \
        build/faiss/tests/make_tiny_gguf >/dev/null
    BUILD=build/faiss SCRIPTS='tests/cli/test_faiss.sh tests/cli/test_bench.sh' tests/run.sh || status=1
    add build/faiss
else
    echo "SKIP k-means by FAISS: libfaiss-dev is not installed and could not be; its tests did not run"
fi
if command -v mpicc >/dev/null 2>&1 && command -v mpirun >/dev/null 2>&1; then
    echo "== calibration by several processes"
    make -j"$jobs" WERROR=-Werror MPI=1 BUILD=build/mpi build/mpi/kvbook build/mpi/tests/make_tiny_gguf >/dev/null
    BUILD=build/mpi SCRIPTS=tests/cli/test_mpi.sh tests/run.sh || status=1
    add build/mpi
else
    echo "SKIP calibration by several processes: no Open MPI (make deps MPI=1 installs it)"
fi
if command -v nvcc >/dev/null 2>&1 || [ -x /usr/local/cuda/bin/nvcc ]; then
    echo "== the GPU runtime and calibration compile; their tests need a device (make check-cuda check-cuda-calib)"
    if make -j"$jobs" WERROR=-Werror cuda >/dev/null && make -j"$jobs" WERROR=-Werror cuda-calib >/dev/null; then passed=$((passed + 1)); else failed=$((failed + 1)); status=1; fi
else
    echo "SKIP the GPU runtime: no nvcc; it was not compiled"
fi
echo "== k-means under ThreadSanitizer"
races=$(tests/tsan.sh) || status=1
echo "$races"
passed=$((passed + $(echo "$races" | grep -c '^ok' || true)))
failed=$((failed + $(echo "$races" | grep -c '^FAIL' || true)))
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$status" -eq 0 ]
