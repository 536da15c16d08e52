#!/usr/bin/env bash
# awscli 1.46.3: `aws s3 sync BUCKET DIRECTORY` writes the objects `a/b`, `a//b` and `/a/b` to one file, says that it
# has downloaded three, and exits with 0.
#
# In S3 a slash is a character like any other, and these are three keys; joined to a directory they are one path. Which
# content is left depends on which of the parallel downloads ends last. Keys with two slashes come from programs that
# join a prefix ending in one and a name beginning with one, so there often is the same name with one slash, with older
# content. A copy of a bucket in a filesystem is complete only when the names were counted, not when each object was
# downloaded.
#
# fsrepl's keys are paths of files, none of which has an empty part.
#
# Exit status 0: behaves as described. 1: it no longer does. 77: the packages cannot be fetched here. Installs into a
# temporary folder, and removes that. Starts moto 5.2.5 as the service, on a free port of this host only, and ends it.
set -euo pipefail
home=$(mktemp -d)
server=""
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$home"' EXIT
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

aws=(python3 -m awscli)
"${aws[@]}" --version
"${aws[@]}" s3api create-bucket --bucket bucket > "$home/answer"
for key in a/b a//b /a/b; do
    echo "content of $key" > "$home/content"
    "${aws[@]}" s3api put-object --bucket bucket --key "$key" --body "$home/content" > "$home/answer"
done
"${aws[@]}" s3 sync s3://bucket "$home/copy" --no-progress && code=0 || code=$?
files=$(find "$home/copy" -type f | wc -l)
echo "files of 3 objects: expected 3, or another exit status than 0; seen $files, exit status $code"
if [ "$files $code" != "1 0" ]; then
    echo "no longer as described: each object is a file, or is reported" >&2
    exit 1
fi
