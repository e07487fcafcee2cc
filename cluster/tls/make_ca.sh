#!/usr/bin/env bash
# The authority that signs every node's certificate; once, on the machine that runs `ray up`:
#     bash cluster/tls/make_ca.sh ~/.braintum-tls
# Whoever has ca.key can pass for a node: keep it as you keep an SSH key.
set -euo pipefail
folder=$1
umask 077
mkdir -p "$folder"
if [ -e "$folder/ca.key" ]; then
    echo "$folder/ca.key is there already; nodes that run trust it" >&2
    exit 1
fi
openssl req -x509 -newkey rsa:3072 -nodes -days 3650 -subj "/CN=braintum cluster" \
    -addext "keyUsage=critical,keyCertSign" -keyout "$folder/ca.key" -out "$folder/ca.crt" 2>/dev/null
echo "$folder/ca.crt"
