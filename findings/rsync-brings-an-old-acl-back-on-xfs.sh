#!/usr/bin/env bash
# xfs (Linux 6.18, xfsprogs 6.1.0) and rsync 3.5.0 (Debian 12): an ACL has two names for root on xfs, and `rsync -aAX`
# takes both along. After a detour over ext4 the older one wins.
#
# xfs keeps an ACL as the attribute `trusted.SGI_ACL_FILE`, and lists that to root beside system.posix_acl_access. rsync
# copies `trusted.*` as root. On ext4 that attribute means nothing and stays as it is, while the ACL there is changed by
# whoever owns the file. Copied to xfs (a restore, the second half of a two-way copy) it is an ACL again: the first run
# shows the new one, the second run sees a difference and sets the old one, with exit status 0. So the entry that was
# given since is gone, and the copy differs from its source for ever.
#
# fsrepl takes `user.*` attributes and the ACL itself, and no attribute of another namespace.
#
# Exit status 0: behaves as described. 1: it no longer does. 77: no root, no loop device, or no packages here. Unpacks
# the packages into a temporary folder, and removes that; nothing is installed.
set -euo pipefail
home=$(mktemp -d)
trap 'umount "$home/xfs" "$home/ext4" 2>/dev/null || true; rm -rf "$home"' EXIT
[ "$(id -u)" = 0 ] || { echo "needs root"; exit 77; }
for package in e2fsprogs=1.47.0-2+b2 xfsprogs=6.1.0-1 rsync=3.5.0+ds1-0+deb12u1 acl=2.3.1-3; do
    (cd "$home" && apt-get download "$package" >/dev/null 2>&1) || { echo "$package cannot be fetched here"; exit 77; }
done
for file in "$home"/*.deb; do dpkg -x "$file" "$home/package"; done
PATH="$home/package/sbin:$home/package/usr/sbin:$home/package/usr/bin:$home/package/bin:$PATH"
mkdir "$home/xfs" "$home/ext4"
truncate -s 64M "$home/ext4.image"
truncate -s 320M "$home/xfs.image"
mkfs.ext4 -q -F "$home/ext4.image"
mkfs.xfs -q "$home/xfs.image" || { echo "mkfs.xfs does not run here"; exit 77; }
mount -o loop "$home/ext4.image" "$home/ext4" || { echo "no loop device here"; exit 77; }
mount -o loop "$home/xfs.image" "$home/xfs" || { echo "no xfs here"; exit 77; }
uname -sr
rsync --version | sed -n 1p

named() { getfacl --omit-header --numeric --absolute-names "$1" | grep '^user:[0-9]' | tr '\n' ' '; }

mkdir "$home/xfs/original"
echo data > "$home/xfs/original/file"
setfacl -m u:1001:rw "$home/xfs/original/file"
rsync -aAX "$home/xfs/original/" "$home/ext4/copy/"
setfacl -b -m u:1002:rw "$home/ext4/copy/file"
first=""
for run in 1 2 3; do
    rsync -aAX "$home/ext4/copy/" "$home/xfs/restored/"
    seen=$(named "$home/xfs/restored/file")
    [ "$run" != 1 ] || first=$seen
    echo "run $run: expected $(named "$home/ext4/copy/file"), seen $seen"
done
if [ "$first" != "user:1002:rw- " ] || [ "$seen" != "user:1001:rw- " ]; then
    echo "no longer as described: the restored file has another ACL" >&2
    exit 1
fi
