"""An identity provider: makes tokens, and serves the keys that they can be checked with."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

MAKERS = {
    "RS": lambda: rsa.generate_private_key(65537, 2048),
    "PS": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ES512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}
NAME = "https://identity.test/"
AUDIENCE = "relay"


class Provider:
    """Serves the keys of `served`, by their ids. `body` is served in their place, `delay` is waited before."""

    def __init__(self):
        self.keys = {}  # private ones, with their algorithms
        self.served = []
        self.body = None
        self.delay = 0.0
        self.fetches = 0
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                provider.fetches += 1
                time.sleep(provider.delay)
                body = provider.key_set() if provider.body is None else provider.body
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = self._server.server_address
        self.url = f"http://127.0.0.1:{self._server.server_port}/keys"
        self.settings = {"ACCESS": "jwt", "JWT_JWKS_URL": self.url, "JWT_ISSUER": NAME, "JWT_AUDIENCE": AUDIENCE}
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def add(self, key_id, algorithm="RS256", serve=True):
        """Makes a key, and serves it from now on."""
        maker = MAKERS.get(algorithm) or MAKERS[algorithm[:2]]
        self.keys[key_id] = (maker(), algorithm)
        if serve:
            self.served.append(key_id)

    def public(self, key_id):
        """A key as it stands in the set."""
        key, algorithm = self.keys[key_id]
        data = get_default_algorithms()[algorithm].to_jwk(key.public_key(), as_dict=True)
        return {**data, "kid": key_id, "use": "sig"}

    def key_set(self):
        return json.dumps({"keys": [self.public(key_id) for key_id in self.served]}).encode()

    def token(self, key_id="k-1", headers=None, without=(), algorithm=None, **claims):
        """A token with these claims, good for five minutes unless they say otherwise."""
        key, own_algorithm = self.keys[key_id]
        now = int(time.time())
        claims = {"iss": NAME, "aud": AUDIENCE, "sub": "ann", "iat": now, "exp": now + 300} | claims
        claims = {name: value for name, value in claims.items() if name not in without}
        headers = {"kid": key_id} | (headers or {})
        headers = {name: value for name, value in headers.items() if value is not None}
        return jwt.encode(claims, key, algorithm or own_algorithm, headers)

    def close(self):
        self._server.shutdown()
        self._server.server_close()
