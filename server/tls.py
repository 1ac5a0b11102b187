"""Certificate checks, with the bundle that the operator's environment names."""

import os
import ssl


def tls_context(cafile: str | None = None) -> ssl.SSLContext:
    """Checks certificates against what the variables that `requests` reads name, else against `cafile`."""
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE")
    if bundle and os.path.isdir(bundle):  # noqa: PTH112
        return ssl.create_default_context(capath=bundle)
    return ssl.create_default_context(cafile=bundle or cafile)
