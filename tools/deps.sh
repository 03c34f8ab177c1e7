#!/bin/sh
# Installs what the build and the tests need, on Debian and its relatives. Quick when nothing is missing.
set -eu
want="gcc g++ make libopenblas-dev libpcre2-dev zlib1g-dev libcmocka-dev python3 python3-pip ca-certificates"
[ "${MPI:-}" != 1 ] || want="$want libopenmpi-dev openmpi-bin"
missing=""
for package in $want; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
# A compiler, Python or pip from elsewhere is as good as Debian's.
for pair in gcc:gcc g++:g++ make:make python3:python3 pip:python3-pip; do
    command -v "${pair%%:*}" >/dev/null 2>&1 && missing=$(echo " $missing " | sed "s/ ${pair##*:} / /")
done
missing=$(echo $missing)
# FAISS is for `make FAISS=1`, clang with libomp for `make tsan`: `make check` runs both where they can be had.
optional=""
if [ "${1:-}" = --optional ]; then
    [ -e /usr/include/faiss/Clustering.h ] || optional=libfaiss-dev
    echo 'int main(void){return 0;}' | clang -fopenmp -fsanitize=thread -x c - -o /dev/null 2>/dev/null ||
        optional="$optional clang libomp-dev"
    # The Python package's tests run with Debian's own Python.
    /usr/bin/python3 -c 'import numpy, pytest' 2>/dev/null || optional="$optional python3-numpy python3-pytest"
    # The manual; its test, and that of the Debian package, use them.
    { command -v scdoc && command -v mandoc; } >/dev/null 2>&1 || optional="$optional scdoc mandoc"
    command -v dpkg-shlibdeps >/dev/null 2>&1 || optional="$optional dpkg-dev"
fi
install() {
    sudo=""
    [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}
if [ -n "$optional" ]; then
    echo "deps: installing $optional" >&2
    install $optional >&2 || echo "deps: $optional could not be installed; going on without" >&2
fi
[ -n "$missing" ] || exit 0
echo "deps: installing $missing" >&2
if ! command -v apt-get >/dev/null 2>&1; then
    echo "deps: no apt-get here; install by hand: $missing" >&2
    exit 1
fi
install $missing
