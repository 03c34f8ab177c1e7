#!/bin/sh
# deb.sh BUILD: a Debian package of what `make install` installs, BUILD/kvbook_VERSION_ARCH.deb. One package: command, libraries,
# headers, manual and completions. DEBFULLNAME and DEBEMAIL name the maintainer, as for Debian's own tools.
set -eu
cd "$(dirname "$0")/.."
build=$1
for tool in dpkg-deb dpkg-shlibdeps scdoc; do
    command -v "$tool" >/dev/null 2>&1 || { echo "make deb: no $tool here (apt-get install dpkg-dev scdoc)" >&2; exit 1; }
done
version=$("$build/kvbook" --version | sed 's/^kvbook //;q')
arch=$(dpkg --print-architecture)
maintainer="${DEBFULLNAME:-kvbook} <${DEBEMAIL:-nobody@example.org}>"
date=$(date -u -R -d "@${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}")
work=$build/deb
root=$work/root
rm -rf "$work"
mkdir -p "$root/DEBIAN" "$work/debian"
make -s install BUILD="$build" DESTDIR="$(cd "$root" && pwd)" PREFIX=/usr >/dev/null
# Debian keeps completions of packages apart from those of the machine's owner.
mkdir -p "$root/usr/share/zsh/vendor-completions"
mv "$root/usr/share/zsh/site-functions/_kvbook" "$root/usr/share/zsh/vendor-completions/"
rmdir "$root/usr/share/zsh/site-functions"
strip --remove-section=.comment --remove-section=.note "$root/usr/bin/kvbook"
strip --strip-unneeded --remove-section=.comment --remove-section=.note "$root"/usr/lib/*.so.1
strip --strip-debug "$root"/usr/lib/*.a
gzip -9n "$root"/usr/share/man/man1/*.1
doc=$root/usr/share/doc/kvbook
mkdir -p "$doc"
printf 'kvbook (%s) unstable; urgency=medium\n\n  * See CHANGELOG.md of the source.\n\n -- %s  %s\n' "$version" "$maintainer" "$date" |
    gzip -9n >"$doc/changelog.gz"
cat >"$doc/copyright" <<END
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2026 the authors of kvbook
License: Apache-2.0

License: Apache-2.0
 The text of the licence is in /usr/share/common-licenses/Apache-2.0.
END
printf 'Source: kvbook\n\nPackage: kvbook\nArchitecture: any\n' >"$work/debian/control"
binaries=$(cd "$work" && echo root/usr/bin/kvbook root/usr/lib/*.so.1)
depends=$(cd "$work" && dpkg-shlibdeps -O $binaries 2>/dev/null | sed -n 's/^shlibs:Depends=//p')
cat >"$root/DEBIAN/control" <<END
Package: kvbook
Version: $version
Architecture: $arch
Maintainer: $maintainer
Installed-Size: $(du -sk "$root/usr" | cut -f1)
Depends: $depends
Section: science
Priority: optional
Description: codebooks for quantised KV caches of language models
 Trains a codebook per layer, head and group of channels of a language model's
 KV cache, checks it, writes one file, and reads it from C: a library encodes a
 live cache and attends over the codes.
END
printf 'activate-noawait ldconfig\n' >"$root/DEBIAN/triggers"
for library in "$root"/usr/lib/*.so.1; do
    name=$(basename "$library" .so.1)
    printf '%s 1 kvbook (>= %s)\n' "$name" "$version"
done >"$root/DEBIAN/shlibs"
(cd "$root" && find usr -type f -exec md5sum {} +) >"$root/DEBIAN/md5sums"
find "$root" -type d -exec chmod 755 {} +
chmod 644 "$root"/DEBIAN/*
dpkg-deb --root-owner-group -b "$root" "$build/kvbook_${version}_$arch.deb" >/dev/null
echo "$build/kvbook_${version}_$arch.deb"
