#!/usr/bin/env bash
# A node's own key and certificate, for its addresses and for loopback, signed by the authority that lies beside them:
#     bash cluster/tls/make_certificate.sh ~/.braintum-tls [ADDRESS...]
# Every node runs it when it is set up. Ray connects by IP address and checks it, so a certificate fits one node only.
set -euo pipefail
folder=$1
shift
umask 077
if [ "$#" -gt 0 ]; then addresses=("$@"); else read -r -a addresses <<<"$(hostname -I)"; fi
names="DNS:localhost,IP:127.0.0.1"
for address in "${addresses[@]}"; do names+=",IP:$address"; done
request=$(mktemp)
trap 'rm -f "$request"' EXIT
openssl req -new -newkey rsa:3072 -nodes -subj "/CN=braintum node" -keyout "$folder/node.key" -out "$request" \
    2>/dev/null
# A node is server and client at once: each end shows its certificate.
openssl x509 -req -in "$request" -CA "$folder/ca.crt" -CAkey "$folder/ca.key" -set_serial "0x$(openssl rand -hex 16)" \
    -days 825 -out "$folder/node.crt" -extfile <(
        printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$names"
    ) 2>/dev/null
echo "$folder/node.crt: $names"
