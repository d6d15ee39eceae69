#!/bin/sh
# Makes a certificate authority and, signed by it, the certificate of the object store; leaves a former one alone.
# Usage: certificate.sh PRIVATE PUBLIC: folders for what only the store reads, and for what its clients trust.
set -eu
umask 077
private=$1 public=$2
[ -e "$private/store.crt" ] && exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
key="ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
openssl req -x509 -newkey $key -days 3650 -keyout "$work/ca.key" -out "$work/ca.crt" -subj "/CN=cmseg object store CA"
openssl req -newkey $key -keyout "$work/store.key" -out "$work/store.csr" -subj "/CN=object-store"
cat > "$work/extensions" <<X
subjectAltName=DNS:object-store,DNS:localhost,IP:127.0.0.1
extendedKeyUsage=serverAuth,clientAuth
basicConstraints=CA:FALSE
X
openssl x509 -req -in "$work/store.csr" -CA "$work/ca.crt" -CAkey "$work/ca.key" -CAcreateserial -days 3650 \
    -extfile "$work/extensions" -out "$work/store.crt"
cp "$work/ca.crt" "$work/store.key" "$private"
cp "$work/ca.crt" "$public"
chmod 644 "$public/ca.crt"
cp "$work/store.crt" "$private" # last: says that all is there; the key of the authority goes with the folder
