#!/bin/sh
# Writes infra/.env: what compose.yaml has to know and nobody else. A file that is there is left alone.
set -eu
umask 077
env_file=$(dirname "$0")/../.env

secret() {
    od -An -N20 -tx1 /dev/urandom | tr -d ' \n'
}

if [ -e "$env_file" ]; then
    echo "$env_file is there already: MinIO keeps the first password, so remove both or neither" >&2
    exit 1
fi
{
    for name in RAY_AUTH_TOKEN MINIO_ROOT_PASSWORD WRITER_SECRET READER_SECRET; do
        printf '%s=%s\n' "$name" "$(secret)"
    done
    printf '%s\n' MINIO_ROOT_USER=root WRITER_KEY=cliffstore-writer READER_KEY=cliffstore-reader
} >"$env_file"
