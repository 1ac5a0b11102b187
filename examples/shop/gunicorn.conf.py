"""The shop's own gunicorn settings."""

from server.gunicorn_hooks import *  # noqa: F403 - relay: worker class, drain, metrics

wsgi_app = "shop:shop"
bind = "127.0.0.1:8080"
workers = 2
