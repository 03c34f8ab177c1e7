#!/bin/sh
# make.sh PAGES OUT: completions and, where scdoc is, the manual into the folder OUT. PAGES: the program built from pages.c.
set -eu
pages=$1 out=$2
mkdir -p "$out"
rm -f "$out"/*.1
"$pages" bash >"$out/kvbook.bash"
"$pages" zsh >"$out/_kvbook"
# The list of commands goes where the written page asks for it.
"$pages" man >"$out/commands.scd"
sed -e "/^@COMMANDS@\$/{
r $out/commands.scd
d
}" docs/man/kvbook.1.scd >"$out/kvbook.1.scd"
for name in $("$pages" names); do
    "$pages" man "$name" >"$out/kvbook-$name.1.scd"
done
if command -v scdoc >/dev/null 2>&1; then
    for source in "$out"/kvbook*.1.scd; do
        scdoc <"$source" | awk -f tools/pages/tidy.awk >"${source%.scd}"
    done
else
    echo "no scdoc: the manual was not made (apt-get install scdoc)" >&2
fi
touch "$out/stamp"
