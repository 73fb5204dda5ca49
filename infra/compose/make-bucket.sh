#!/bin/sh
# Makes a bucket in MinIO, a writer and a reader under the policies of infra/policies, and puts a corpus there unless
# there is one. Safe to run again. Needs mc; nothing but the shell beside it, which is all that its image has.
set -eu

# `mc` has no command that fills in a policy: BUCKET stands once in a line.
fill_in() {
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in
        *BUCKET*) printf '%s%s%s\n' "${line%%BUCKET*}" "$BUCKET" "${line#*BUCKET}" ;;
        *) printf '%s\n' "$line" ;;
        esac
    done <"$1"
}

# make_user NAME KEY SECRET: a user of the policy of that name.
make_user() {
    fill_in "/policies/$1.json" >"/tmp/$1.json"
    mc admin policy create store "cliffstore-$1" "/tmp/$1.json"
    mc admin user add store "$2" "$3"
    case $(mc admin user info store "$2") in
    *"cliffstore-$1"*) ;; # attached before; to attach it twice is an error
    *) mc admin policy attach store "cliffstore-$1" --user "$2" ;;
    esac
}

mc alias set store http://minio:9000 "$MINIO_ROOT_USER" "$MINIO_ROOT_PASSWORD" >/dev/null
mc mb --ignore-existing "store/$BUCKET"
make_user writer "$WRITER_KEY" "$WRITER_SECRET"
make_user reader "$READER_KEY" "$READER_SECRET"
if ! mc stat "store/$BUCKET/corpus.jsonl" >/dev/null 2>&1; then
    mc cp /corpus.jsonl "store/$BUCKET/corpus.jsonl"
fi
