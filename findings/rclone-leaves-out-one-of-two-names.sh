#!/usr/bin/env bash
# rclone 1.60.1 (Debian 12): of two files whose names differ only in how an accent is written, one is not copied, and
# `rclone check` finds no difference. Both commands exit with 0.
#
# "é" is one character, or an "e" with a combining accent; macOS and its archives write the second form. Linux's
# filesystems take both as two names, and S3 as two keys. rclone compares names after normalising them, whatever the two
# sides are: what comes second is "a duplicate", which is a notice. So a backup lacks a file, and the check that one
# makes because of such doubts passes for the same reason. A checker must not share the rule of what it checks.
#
# fsrepl's keys are bytes, and it never normalises a name; `fsrepl verify` compares by the same bytes.
#
# Exit status 0: behaves as described. 1: it no longer does. 77: the package cannot be fetched here. Unpacks the package
# into a temporary folder, and removes that; nothing is installed.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
(cd "$home" && apt-get download rclone=1.60.1+dfsg-2+b5 >/dev/null 2>&1) || { echo "rclone 1.60.1+dfsg-2+b5 cannot be fetched here"; exit 77; }
dpkg -x "$home"/rclone_*.deb "$home/package"
rclone() { "$home/package/usr/bin/rclone" --config /dev/null "$@"; }
rclone version | sed -n 1p
mkdir "$home/source" "$home/copy"
echo composed > "$home/source/$(printf 'caf\303\251')"
echo combined > "$home/source/$(printf 'cafe\314\201')"
rclone copy "$home/source" "$home/copy" && copied=0 || copied=$?
rclone check "$home/source" "$home/copy" && checked=0 || checked=$?
files=$(find "$home/copy" -type f | wc -l)
echo "files in the copy: expected 2, seen $files; exit status of copy: $copied"
echo "exit status of check: expected 1, seen $checked"
if [ "$files $copied $checked" != "1 0 0" ]; then
    echo "no longer as described: both files are copied, or the missing one is reported" >&2
    exit 1
fi
