"""The way to each place that the server talks to: its name, the connection, the certificate.

It is `dial.Way` that dials, with the proxies and the bundle of certificates that the server takes as well.
"""

import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from functools import partial
from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

import gevent

from ..dial import DEFAULT_PORTS, ProxyRefused, Way, proxy_for
from ..settings import Settings, is_loopback
from ..tls import bundle_variable
from .finding import Check, Outcome, bad, doubtful, good

NAME_TIMEOUT = 10.0  # seconds to look a name up
SELF_SIGNED = 18  # X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT
SOON = 21 * 86_400.0  # seconds before a certificate's end in which it should have been renewed


class Fixes(NamedTuple):
    """What to do about a host, beginnings of sentences: it depends on whose host it is."""

    name: str
    renewal: str
    self_signed: str = ""  # a whole one; empty where such a certificate is a matter of trust like any other


THEIRS = Fixes("Correct GENESYS_ENV, or the address set", "Have whoever runs that host renew its certificate")
OURS = Fixes(
    "Make a DNS record for it, or correct --url",
    "Renew it, and have the proxy read it again",
    "The proxy still has its first certificate, signed by itself: have one issued, and the proxy reloaded.",
)


def checks(settings: Settings) -> Iterator[Check]:
    return ways(places(settings), THEIRS)


def ways(found: Mapping[str, str], fixes: Fixes) -> Iterator[Check]:
    """For addresses by what they are used for: one for each name, one for each host and port."""
    grouped = by_connection(found)
    names = {urlsplit(url).hostname or "": url for url, _ in grouped.values()}
    for host, url in names.items():
        if not is_address(host):
            yield Check(name_of(host), partial(look_up, url, fixes))
    for name, (url, uses) in grouped.items():
        yield Check(name, partial(connect, url, uses, fixes), (name_of(urlsplit(url).hostname or ""),))


def name_of(host: str) -> str:
    return f"name {host}"


def is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def places(settings: Settings) -> dict[str, str]:
    """What is asked where."""
    found = {}
    if settings.access == "jwt" and settings.jwt_jwks_url:
        found["token issuer"] = settings.jwt_jwks_url
    if settings.needs_oauth:
        found["login"] = settings.genesys_oauth_url
    found["gateway"] = settings.genesys_gateway_url
    if settings.transcript == "websocket":
        found["transcript"] = settings.genesys_transcript_url
    elif settings.transcript == "platform":
        found["platform API"] = settings.genesys_api_url
    return found


def by_connection(found: Mapping[str, str]) -> dict[str, tuple[str, list[str]]]:
    """By the name of the connection's check: an address there, and what it is used for."""
    grouped: dict[str, tuple[str, list[str]]] = {}
    for use, url in found.items():
        grouped.setdefault(connection_of(url), (url, []))[1].append(use)
    return grouped


def connection_of(url: str) -> str:
    """The name of the check of the way to `url`."""
    parts = urlsplit(url)
    return f"way to {parts.hostname}:{port_of(parts)}"


def port_of(parts: SplitResult) -> int:
    return parts.port or DEFAULT_PORTS[parts.scheme]


def look_up(url: str, fixes: Fixes) -> Outcome:
    """The host's addresses; those of the proxy where there is one: it looks up the rest."""
    proxy = proxy_for(url)
    host = proxy.host if proxy else urlsplit(url).hostname or ""
    try:
        with gevent.Timeout(NAME_TIMEOUT, TimeoutError()):
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = "no answer" if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or "no host name"
        fix = "Correct the host in HTTPS_PROXY (or HTTP_PROXY)" if proxy else fixes.name
        return bad(f"{host} cannot be found: {reason}", f"{fix}; else see to this machine's DNS (/etc/resolv.conf).")
    addresses = ", ".join(sorted({str(entry[4][0]) for entry in found})[:3])
    if proxy:
        return good(f"left to the proxy {proxy.host}:{proxy.port} ({addresses})")
    return good(addresses)


def connect(url: str, uses: list[str], fixes: Fixes) -> Outcome:
    """Opens a connection as the server does, and closes it."""
    parts = urlsplit(url)
    way = Way(url, tunnel=parts.scheme != "http")
    what = ", ".join(uses)
    through = f" through the proxy {way.proxy.host}:{way.proxy.port}" if way.proxy else ""
    began = time.monotonic()
    try:
        connection = way.dial()
    except ssl.SSLError as error:
        return untrusted(error, through, fixes)
    except ProxyRefused as error:
        return bad(
            f"for {what}:{through} {error}",
            f"Let the proxy pass {parts.hostname}:{port_of(parts)}, give its user and password in HTTPS_PROXY, or add "
            f"{parts.hostname} to NO_PROXY.",
        )
    except OSError as error:
        return unreachable(error, what, through, parts)
    took = f"{(time.monotonic() - began) * 1000:.0f} ms"
    try:
        if isinstance(connection, ssl.SSLSocket):
            return certified(connection, f"for {what}{through}, {connection.version()} in {took}", fixes)
    finally:
        connection.close()
    if is_loopback(parts.hostname or ""):
        return good(f"for {what}{through}, in {took}, without TLS on this machine")
    return doubtful(
        f"for {what}{through}, in {took}, without TLS: tokens and text can be read on the way",
        f"Use {'wss' if parts.scheme == 'ws' else 'https'}:// in the address.",
    )


def certified(connection: ssl.SSLSocket, found: str, fixes: Fixes) -> Outcome:
    """The certificate was checked when the connection opened; how long is it good?"""
    certificate: Mapping[str, Any] = connection.getpeercert() or {}
    left = ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()
    found = f"{found}, certificate good for {left / 86_400:.0f} days"
    if variable := bundle_variable():
        found += f" (checked with {variable})"
    if left < SOON:
        return doubtful(found, f"{fixes.renewal}: after its end nothing passes.")
    return good(found)


def unreachable(error: OSError, what: str, through: str, parts: SplitResult) -> Outcome:
    reason = "no answer in time" if isinstance(error, TimeoutError) else error.strerror or type(error).__name__
    if through:
        return bad(
            f"for {what}: no way{through}: {reason}",
            "Correct HTTPS_PROXY (or HTTP_PROXY), or name the host in NO_PROXY where no proxy is needed.",
        )
    return bad(
        f"for {what}: {parts.hostname}:{port_of(parts)} cannot be reached: {reason}",
        "Open the firewall for it, set HTTPS_PROXY where only a proxy gets out, or correct the address.",
    )


def untrusted(error: ssl.SSLError, through: str, fixes: Fixes) -> Outcome:
    """No TLS, or a certificate that is not trusted: says why, and where trust comes from."""
    variable = bundle_variable()
    if not isinstance(error, ssl.SSLCertVerificationError):
        return bad(
            f"no TLS{through}: {(error.reason or type(error).__name__).lower().replace('_', ' ')}",
            "What answers there speaks no TLS that this machine takes: correct the port and http:// or https://.",
        )
    reason = error.verify_message
    if "expired" in reason:
        fix = f"{fixes.renewal}, and see that this machine's clock is right."
    elif "ostname" in reason or "IP address" in reason:
        fix = "Use the name that the certificate is made for."
    elif fixes.self_signed and error.verify_code == SELF_SIGNED:
        fix = fixes.self_signed
    elif variable:
        fix = f"{variable} names the certificates that are trusted, in place of the system's: add the right one there."
    else:
        fix = (
            "A proxy that opens TLS, or a company's own authority? Put its certificate into a bundle and name that in "
            "REQUESTS_CA_BUNDLE."
        )
    where = f"{variable}, " if variable else ""
    return bad(f"certificate not trusted{through} ({where}{reason})", fix)
