#!/usr/bin/env bash
# awscli 1.46.3: `aws s3 sync DIRECTORY BUCKET --delete` removes the objects of files and whole directories that are
# there and cannot be read at the moment.
#
# It warns that it skips them, and treats them as absent all the same: skipped on one side, they are surplus on the
# other. A file whose mode was changed loses its copy; a directory that cannot be entered loses everything below it. The
# exit status 2 comes when all is gone. rsync turns --delete off at the first such error, so that one expects the
# opposite. What could not be seen is not what is not there.
#
# fsrepl takes a key for deleted only where it has read the directory and the name is not in it; a directory that cannot
# be read is reported, and nothing below it is deleted (capture/scan.py).
#
# Exit status 0: behaves as described. 1: it no longer does. 77: no root, or the packages cannot be fetched here. Needs
# root to be an ordinary user for the second run. Installs into a temporary folder, and removes that. Starts moto 5.2.5
# as the service, on a free port of this host only, and ends it.
set -euo pipefail
home=$(mktemp -d)
server=""
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$home"' EXIT
[ "$(id -u)" = 0 ] || { echo "needs root"; exit 77; }
python3 -m pip install -q --no-compile --target "$home/packages" awscli==1.46.3 'moto[server]==5.2.5' 2>"$home/log" ||
    { echo "awscli 1.46.3 and moto 5.2.5 cannot be fetched here"; exit 77; }
unset "${!AWS_@}"
export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$home/packages" AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any AWS_DEFAULT_REGION=us-east-1
python3 -m moto.server -H 127.0.0.1 -p 0 >"$home/server" 2>&1 &
server=$!
for _ in {1..300}; do
    AWS_ENDPOINT_URL=$(grep -o 'http://127.0.0.1:[0-9]*' "$home/server" | sed -n 1p || true)
    [ -z "$AWS_ENDPOINT_URL" ] || break
    sleep 0.1
done
[ -n "$AWS_ENDPOINT_URL" ] || { echo "moto does not start here"; exit 77; }
export AWS_ENDPOINT_URL

chmod 755 "$home"
mkdir -p "$home/files/folder"
echo 1 > "$home/files/open"
echo 2 > "$home/files/closed"
echo 3 > "$home/files/folder/inside"
aws=(python3 -m awscli)
"${aws[@]}" --version
"${aws[@]}" s3 mb s3://bucket
"${aws[@]}" s3 sync "$home/files" s3://bucket --delete --no-progress
chmod 0 "$home/files/closed" "$home/files/folder"
HOME="$home" setpriv --reuid=65534 --clear-groups "${aws[@]}" s3 sync "$home/files" s3://bucket --delete --no-progress && code=0 || code=$?
left=$("${aws[@]}" s3 ls --recursive s3://bucket | awk '{print $4}' | tr '\n' ' ')
echo "exit status $code; left in the bucket: expected closed folder/inside open, seen $left"
if [ "$code $left" != "2 open " ]; then
    echo "no longer as described: what cannot be read is not deleted" >&2
    exit 1
fi
