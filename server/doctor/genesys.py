"""Login, gateway and transcript, asked with the server's own parts: what passes here works there."""

from collections.abc import Iterator
from functools import partial

from ..credentials import Credentials
from ..settings import Settings
from .clock import Clock
from .finding import Check
from .gateway import ask_gateway
from .login import log_in
from .network import connection_of
from .transcript import look_at_platform, open_link


def checks(settings: Settings, credentials: Credentials | None, clocks: list[Clock]) -> Iterator[Check]:
    """`clocks` gets those of the places that answer."""
    login = ("login",) if credentials is not None else ()
    if credentials is not None:
        way = connection_of(settings.genesys_oauth_url)
        yield Check("login", partial(log_in, credentials, settings.oauth_scope, clocks), (way,))
    needs = (connection_of(settings.genesys_gateway_url), *(() if settings.gateway_api_key else login))
    yield Check("gateway", partial(ask_gateway, settings, credentials, clocks), needs)
    if credentials is not None and settings.transcript == "websocket":
        needs = (connection_of(settings.genesys_transcript_url), *login)
        yield Check("transcript", partial(open_link, settings, credentials), needs)
    elif credentials is not None and settings.transcript == "platform":
        needs = (connection_of(settings.genesys_api_url), *login)
        yield Check("transcript", partial(look_at_platform, settings, credentials), needs)
