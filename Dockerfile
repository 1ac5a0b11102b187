# The relay alone; deploy/compose.yaml has Redis and nginx around it.
#   docker build -t genesys-sse-relay .
# Settings come from the environment when it runs: nothing of them is in the image.

FROM python:3.11-slim-bookworm AS build
WORKDIR /opt/relay
COPY requirements.txt ./
RUN python -m venv .venv && .venv/bin/pip install --no-cache-dir --require-hashes -r requirements.txt

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 relay && install -d -o relay -g relay -m 0700 /var/lib/relay \
    && install -d -o relay -g relay /run/relay
WORKDIR /opt/relay
COPY --from=build /opt/relay/.venv .venv
COPY gunicorn.conf.py ./
COPY server server
COPY deploy/health.py deploy/
ENV PATH=/opt/relay/.venv/bin:$PATH PYTHONPATH=/opt/relay PYTHONDONTWRITEBYTECODE=1 \
    BIND=0.0.0.0:8000 STORE_URL=sqlite:////var/lib/relay/relay.db
USER relay
WORKDIR /var/lib/relay
VOLUME /var/lib/relay
EXPOSE 8000
# A stopping container finishes its turns first: give it GATEWAY_TIMEOUT + 30 s (docker stop -t 330).
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python", "/opt/relay/deploy/health.py"]
CMD ["gunicorn", "-c", "/opt/relay/gunicorn.conf.py"]
