#!/bin/sh
# tools/austen_text.py on a small database written here, in both serialisations that R has used.
. "$(dirname "$0")/lib.sh"

make_database() { # make_database FOLDER VERSION COMPRESSION
    mkdir -p "$1"
    python3 - "$1" "$2" "$3" <<'PY'
import struct, sys, zlib
folder, version, kind = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
head = b"X\n" + struct.pack(">iii", version, 0x40000, 0x30500) + (struct.pack(">i", 5) + b"UTF-8" if version == 3 else b"")
i = lambda n: struct.pack(">i", n)
char = lambda s, flags=9 | (8 << 12): i(flags) + i(len(s)) + s
strings = lambda items: i(16) + i(len(items)) + b"".join(items)
names = lambda items: i(0x402) + i(1) + char(b"names") + strings([char(n) for n in items]) + i(254)
ints = lambda *n: i(13) + i(len(n)) + b"".join(i(x) for x in n)

novel = [char(("line %d, caf\u00e9" % k).encode("utf-8")) for k in range(1200)]
novel[3] = char(b"caf\xe9", 9 | (4 << 12))  # marked as Latin-1
raw = head + strings(novel)
other = head + ints(1, 2, 3)
pack = lambda raw: struct.pack(">I", len(raw)) + (b"0" + raw if kind == 3 else zlib.compress(raw))
first, second = pack(raw), pack(other)
variables = i(19 | 0x200) + i(2) + ints(0, len(first)) + ints(len(first), len(second)) + names([b"novel", b"numbers"])
index = i(19 | 0x200) + i(3) + variables + i(19) + i(0) + ints(kind) + names([b"variables", b"references", b"compressed"])
open(folder + "/Rdata.rdb", "wb").write(first + second)
open(folder + "/Rdata.rdx", "wb").write(zlib.compress(head + index))
PY
}

for version in 2 3; do
    for kind in 1 3; do
        make_database "$tmp/db-$version-$kind" $version $kind
        expect "serialisation $version, compression $kind" 0 'novel.txt [0-9]+ bytes' \
            python3 tools/austen_text.py "$tmp/db-$version-$kind" "$tmp/out-$version-$kind"
        expect "its lines ($version, $kind)" 0 '^line 1199, café$' tail -n 1 "$tmp/out-$version-$kind/novel.txt"
        expect "its Latin-1 line ($version, $kind)" 0 '^café$' sed -n 4p "$tmp/out-$version-$kind/novel.txt"
        expect "nothing but the novel ($version, $kind)" 0 '^novel.txt$' sh -c "ls '$tmp/out-$version-$kind' | tr '\n' ' ' | sed 's/ $//'"
    done
done
mkdir "$tmp/cut"
cp "$tmp/db-3-1/Rdata.rdx" "$tmp/cut/"
head -c 300 "$tmp/db-3-1/Rdata.rdb" >"$tmp/cut/Rdata.rdb"
expect "a database cut short" 1 '^austen_text.py: ' python3 tools/austen_text.py "$tmp/cut" "$work/cut"
expect "a folder without one" 1 'Rdata.rdx' python3 tools/austen_text.py "$work" "$work/none"
done_testing
