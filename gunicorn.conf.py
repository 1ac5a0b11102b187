"""gunicorn's settings, each with its reason. The relay's own are in the environment: see server/settings.py."""

import os
from pathlib import Path
from typing import Any

from server.journal.engines import prepare_or_exit
from server.metrics_folder import clear_slot, keep_slot, make_folder, take_slot
from server.settings import load_or_exit
from server.telemetry import log_config
from server.worker import Log, check_before_reload, hurry_on_second_term, look_before_start

settings = load_or_exit()
prepare_or_exit(settings.store_url)

wsgi_app = "server:create_app()"
worker_class = "server.worker.Worker"

# BIND. Behind nginx a loopback address is right.
bind = settings.bind

# WEB_CONCURRENCY. A stream begun on one worker can be followed, resumed and cancelled on every other.
workers = settings.web_concurrency

# Connections that one worker holds. Each turn has a client, and others may look in; MAX_TURNS is what refuses politely.
worker_connections = 2 * settings.max_turns + 100

# Waiting connections while a worker is busy setting up many streams at once.
backlog = 2048

# A worker whose hub is blocked for so long is killed. Streams do not count: the hub runs on while they wait.
timeout = 30

# After TERM or HUP a worker stays until its turns have ended: longer than any turn may take (GATEWAY_TIMEOUT).
graceful_timeout = int(settings.gateway_timeout) + 15


def on_starting(arbiter: Any) -> None:
    """Once in the master's life, not at a reload: the server goes on with the keys that it has."""
    look_before_start(settings)
    make_folder(arbiter)


# /metrics tells the numbers of all workers, whichever is asked: they share a folder.
pre_fork = take_slot
post_fork = keep_slot
child_exit = clear_slot


def when_ready(arbiter: Any) -> None:
    """A second TERM ends what runs with `interrupted`, quickly, as INT does at once; HUP looks before it leaps."""
    hurry_on_second_term(arbiter)
    check_before_reload(arbiter)


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

# Each worker loads the app itself: the worker class patches the standard library first, which a preload would precede.
preload_app = False

# Heartbeats and metrics are written to files, often: in memory, not on a disk that may be slow.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None

# gunicorn 25 and later open a control socket in the home folder, which no one here uses.
control_socket_disable = True

# At LOG_LEVEL=DEBUG one line a request, through the relay's own formatter. A stream's line comes when it ends.
logger_class = Log
access_log_format = '%(h)s "%(m)s %(U)s" %(s)s %(B)s bytes %(M)s ms'
logconfig_dict = log_config(settings)
loglevel = settings.log_level.lower()
