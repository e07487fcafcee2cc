#!/bin/sh
# Issues a pod's certificate from the cluster's CA, for the gRPC between Ray's processes (RAY_USE_TLS).
#
# Each side checks that the other's certificate comes from that CA, and who calls also that it names the address that
# was called: a pod's IP, the head's service, or loopback. The CA's key is seen by this init container only.
#
# CA: PEM file of the CA's key and certificate; TLS: folder to write; POD_IP; FQ_RAY_IP: the head's service, by KubeRay.
set -eu
umask 077
cd "$TLS"
openssl x509 -in "$CA" -out ca.crt
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=ray -keyout tls.key -out tls.csr
openssl x509 -req -in tls.csr -CA "$CA" -CAkey "$CA" -set_serial "0x$(openssl rand -hex 16)" -days 365 -sha256 \
  -extfile /dev/stdin -out tls.crt <<END
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature, keyAgreement
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = DNS:localhost, DNS:$FQ_RAY_IP, IP:127.0.0.1, IP:$POD_IP
END
rm tls.csr
