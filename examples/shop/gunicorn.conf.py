"""The shop's own gunicorn settings."""

from server.gunicorn_hooks import *  # noqa: F403 - relay: worker class, drain, metrics
from server.settings import load_for_app  # relay
from server.telemetry import log_config  # relay

wsgi_app = "shop:shop"
bind = "127.0.0.1:8080"
workers = 2
logconfig_dict = log_config(load_for_app())  # relay: its lines with all that they say, and no secret
