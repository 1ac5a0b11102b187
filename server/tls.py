"""Certificate checks, with the bundle that the operator's environment names."""

import os
import ssl
from pathlib import Path

from requests.utils import DEFAULT_CA_BUNDLE_PATH

VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")  # those that `requests` and OpenSSL read


def tls_context() -> ssl.SSLContext:
    """Checks certificates against the bundle that a variable names, the system's, or the one that `requests` brings."""
    variable = bundle_variable()
    bundle = os.environ[variable] if variable else None
    if bundle and Path(bundle).is_dir():
        return ssl.create_default_context(capath=bundle)
    return ssl.create_default_context(cafile=bundle or (None if system_has_bundle() else DEFAULT_CA_BUNDLE_PATH))


def bundle_variable() -> str | None:
    """The variable that names the bundle, None where none does."""
    return next(filter(os.environ.get, VARIABLES), None)


def system_has_bundle() -> bool:
    """Slim container images have none."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile is not None:
        return True
    return paths.capath is not None and any(Path(paths.capath).glob("*.0"))  # OpenSSL's names for certificates
