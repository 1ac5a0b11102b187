"""gunicorn's settings, each with its reason. The relay's own are in the environment: see server/settings.py."""

import os
from typing import Any

# The worker class, what it needs around it, and how long it may take to stop.
from server.gunicorn_hooks import *  # noqa: F403
from server.gunicorn_hooks import take_charge
from server.settings import Settings, SettingsError, load, load_or_exit
from server.telemetry import log_config
from server.worker import Log

settings = load_or_exit()

wsgi_app = "server:create_app()"

# BIND. Behind nginx a loopback address is right.
bind = settings.bind

# WEB_CONCURRENCY. A stream begun on one worker can be followed, resumed and cancelled on every other.
workers = settings.web_concurrency

# Waiting connections while a worker is busy setting up many streams at once.
backlog = 2048


def load_again() -> Settings:
    """What a reload would read. Raises SettingsError for what only a start can change."""
    again = load()
    if again.bind != settings.bind:
        raise SettingsError(
            f"BIND={again.bind} takes a restart: gunicorn would give up {settings.bind} before it has it"
        )
    return again


def when_ready(arbiter: Any) -> None:
    """As for an app, but that here the settings must say who may ask."""
    take_charge(arbiter, load_again)


# A worker whose hub is blocked for so long is killed. Streams do not count: the hub runs on while they wait.
timeout = 30

# An idle connection is kept for a proxy's next request, but a stopping worker waits for it: no longer than this. The
# head of each request must be there within the same time, or the connection ends: 0 would be no limit.
keepalive = 5

# An address holds at most a conversation's id (200 characters of any script, percent-encoded) or a ticket.
limit_request_line = 4094

# A browser sends some twenty headers, proxies add a few; together with the next line, half a MB that waits for its end.
limit_request_fields = 64

# A token with its claims fits; more than 8 KB in one header is what nginx refuses as well.
limit_request_field_size = 8190

# The parser that tests/test_hardening.py tries; left to itself, gunicorn takes another one where that is installed.
http_parser = "python"

# Who may say by X-Forwarded-Proto that a client came over TLS: a proxy on this machine, and no stranger who leads
# others to think so. X-Forwarded-For is believed from no one: nothing here depends on a client's address.
forwarded_allow_ips = os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1,::1")

# No header says which path was asked for (by default SCRIPT_NAME and PATH_INFO, from the same proxies).
forwarder_headers = ""

# At LOG_LEVEL=DEBUG one line a request, through the relay's own formatter. A stream's line comes when it ends.
logger_class = Log
logconfig_dict = log_config(settings)
loglevel = settings.log_level.lower()
