# What every process of the cluster has in its environment: each login reads this, and so does each `ray start`.
# No secret stands here: the token is in ~/.ray/auth_token, the keys in ~/.braintum-tls, all readable by one user only.
export PATH="$HOME/braintum-env/bin:$PATH"
export RAY_AUTH_MODE=token
export RAY_USE_TLS=1
export RAY_TLS_CA_CERT="$HOME/.braintum-tls/ca.crt"
export RAY_TLS_SERVER_CERT="$HOME/.braintum-tls/node.crt"
export RAY_TLS_SERVER_KEY="$HOME/.braintum-tls/node.key"
