#!/usr/bin/env bash
# bsdtar 3.6.2 (libarchive, Debian 12): of two files whose names are the same word in the composed and the decomposed
# spelling of Unicode (`é` as C3 A9, and as 65 CC 81), one is left after a restore, with exit status 0 and no message.
#
# To Linux these are two names. The archive holds both, and GNU tar brings both back. bsdtar reads the names in a locale
# of UTF-8 through a conversion that composes them, so that the second file is written over the first; a file of the
# decomposed spelling alone comes back under another name. It does the same with zip archives, and not in the locale
# `C`. Trees that a Mac has written into have decomposed names, and so do many that were unpacked there: a directory in
# which both systems save has both spellings.
#
# fsrepl takes names as bytes.
#
# Exit status 0: behaves as described. 1: it no longer does. 77: no packages or no locale here. Unpacks the packages
# into a temporary folder, and removes that; nothing is installed.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
for package in libarchive-tools=3.6.2-1+deb12u5 libarchive13=3.6.2-1+deb12u5 tar=1.34+dfsg-1.2+deb12u1; do
    (cd "$home" && apt-get download "$package" >/dev/null 2>&1) || { echo "$package cannot be fetched here"; exit 77; }
done
for file in "$home"/*.deb; do dpkg -x "$file" "$home/package"; done
libraries=("$home"/package/usr/lib/*-linux-gnu)
bsdtar() { LC_ALL="$1" LD_LIBRARY_PATH="${libraries[0]}" "$home/package/usr/bin/bsdtar" "${@:2}"; }
bsdtar C.UTF-8 --version || { echo "bsdtar does not run here"; exit 77; }
"$home/package/bin/tar" --version | sed -n 1p
[ "$(LC_ALL=C.UTF-8 locale charmap)" = UTF-8 ] || { echo "there is no locale C.UTF-8 here"; exit 77; }

composed=$'\xc3\xa9' decomposed=$'e\xcc\x81'
files() { (cd "$1" && for file in *; do printf '%s=%s ' "$(printf %s "$file" | od -An -tx1 | tr -d ' \n')" "$(cat "$file")"; done); }

mkdir "$home/original" "$home/utf-8" "$home/c" "$home/gnu" "$home/alone" "$home/alone-restored"
echo one > "$home/original/$composed"
echo two > "$home/original/$decomposed"
bsdtar C.UTF-8 -C "$home/original" -cf "$home/archive.tar" .
bsdtar C.UTF-8 -C "$home/utf-8" -xf "$home/archive.tar"
bsdtar C -C "$home/c" -xf "$home/archive.tar" 2>/dev/null || echo "bsdtar in C exits with $?, and says that it cannot convert the names"
"$home/package/bin/tar" -C "$home/gnu" -xf "$home/archive.tar"
cp "$home/original/$decomposed" "$home/alone/"
bsdtar C.UTF-8 -C "$home/alone" -cf "$home/alone.tar" .
bsdtar C.UTF-8 -C "$home/alone-restored" -xf "$home/alone.tar"
expected=$(files "$home/original") seen=$(files "$home/utf-8") alone=$(files "$home/alone-restored")
echo "expected:                       $expected"
echo "bsdtar in C.UTF-8, seen:        $seen"
echo "bsdtar in C, seen:              $(files "$home/c")"
echo "GNU tar, seen:                  $(files "$home/gnu")"
echo "expected where it is alone:     $(files "$home/alone")"
echo "bsdtar in C.UTF-8, seen:        $alone"
if [ "$(files "$home/c")$(files "$home/gnu")" != "$expected$expected" ]; then
    echo "no longer as described: the archive does not hold both" >&2
    exit 1
fi
case "$seen" in c3a9=one\ | c3a9=two\ ) ;; *) echo "no longer as described: compare the names" >&2; exit 1 ;; esac
[ "$alone" = "c3a9=two " ] || { echo "no longer as described: the name is kept" >&2; exit 1; }
