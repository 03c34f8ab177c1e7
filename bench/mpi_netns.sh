#!/bin/sh
# Two processes of a calibration in network namespaces of their own, with nothing between them but a virtual cable: the book has the bytes of one
# process, and where one is killed the job ends with an error and a checkpoint that goes on. Needs root, iproute2 and Open MPI (make deps MPI=1).
#   KVBOOK=build/mpi/kvbook bench/mpi_netns.sh MODEL TEXT [FLAGS of calibrate]
set -eu
kvbook=$(realpath "${KVBOOK:-build/mpi/kvbook}") model=$(realpath "$1") text=$(realpath "$2")
shift 2
work=$(mktemp -d)
clean() {
    for n in 1 2; do ip netns del kvbook$n 2>/dev/null || true; done
    rm -rf "$work"
}
trap clean EXIT
for n in 1 2; do ip netns add kvbook$n; done
ip link add kvb1 type veth peer name kvb2
for n in 1 2; do
    ip link set kvb$n netns kvbook$n
    ip -n kvbook$n addr add 10.77.0.$n/24 dev kvb$n
    ip -n kvbook$n link set kvb$n up
    ip -n kvbook$n link set lo up
    mkdir -p "/etc/netns/kvbook$n"
    printf '127.0.0.1 localhost\n10.77.0.1 kvbook1\n10.77.0.2 kvbook2\n' >"/etc/netns/kvbook$n/hosts"
done
# In place of ssh: a shell in the other namespace, which has a host name of its own.
cat >"$work/agent" <<'AGENT'
#!/bin/sh
host=$1
shift
exec ip netns exec "$host" unshare --uts sh -c "hostname $host; $*"
AGENT
chmod +x "$work/agent"
job() { # job OUTPUT FLAGS...: two processes, one in each namespace
    output=$1
    shift
    ip netns exec kvbook1 unshare --uts sh -c 'hostname kvbook1; exec "$@"' sh mpirun --allow-run-as-root -n 2 --host kvbook1:1,kvbook2:1 \
        --bind-to none --mca plm_rsh_agent "$work/agent" --mca oob_tcp_if_include 10.77.0.0/24 --mca btl tcp,self \
        --mca btl_tcp_if_include 10.77.0.0/24 "$kvbook" calibrate --model "$model" --text "$text" -o "$output" "$@"
}
bytes() { ip netns exec kvbook1 cat /sys/class/net/kvb1/statistics/tx_bytes /sys/class/net/kvb1/statistics/rx_bytes | paste -sd' '; }

"$kvbook" calibrate --model "$model" --text "$text" -q -o "$work/one.kvb" "$@"
start=$(date +%s)
job "$work/two.kvb" -q "$@"
echo "two processes: $(($(date +%s) - start)) s; bytes sent and received by the first over the cable: $(bytes)"
cmp "$work/one.kvb" "$work/two.kvb" && echo "ok   two namespaces: the bytes of one process"

echo "== the process in the second namespace is killed"
job "$work/three.kvb" --checkpoint "$work/ck" "$@" >"$work/log" 2>&1 &
pid=$!
for i in $(seq 600); do
    victim=$(ip netns pids kvbook2 | while read -r p; do grep -q calibrate "/proc/$p/cmdline" 2>/dev/null && grep -q '^Name:.kvbook$' "/proc/$p/status" && echo "$p"; done) || true
    if [ -n "$victim" ] && [ -d "$work/ck" ]; then break; fi
    sleep 0.1
done
sleep "${AFTER:-2}"
kill -9 $victim
if wait $pid; then echo "FAIL the job ended well"; exit 1; fi
[ ! -e "$work/three.kvb" ] && echo "ok   the job ended with an error and no book"
grep -m 3 -i 'killed\|signal\|exited\|lost' "$work/log" || tail -n 3 "$work/log"
job "$work/three.kvb" --checkpoint "$work/ck" --resume -q "$@"
cmp "$work/one.kvb" "$work/three.kvb" && echo "ok   resumed: the bytes of one process"
