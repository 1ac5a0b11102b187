"""Dockerfile and deploy/compose.yaml, without Docker: the files that they name are put together and run."""

import fnmatch
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import requests
import yaml

from server.settings import Settings

from .conftest import ROOT, Process, until
from .deployed import free_port

FOLDER = ROOT / "deploy"
SECRETS = {name.upper() for name in Settings.model_fields if re.search("secret|keys|key$", name)}


def read_dockerfile():
    """[(instruction, the rest)], comments and line ends taken out."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (ROOT / "Dockerfile").read_text())
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]


def all_of(instruction, last_stage=False):
    found = read_dockerfile()
    if last_stage:
        begin = max(place for place, (name, _) in enumerate(found) if name == "FROM")
        found = found[begin:]
    return [rest for name, rest in found if name == instruction]


def is_ignored(path):
    """What .dockerignore keeps out of the build, the last rule that fits deciding; for the rules that are in ours."""
    parts = Path(path).parts
    ways = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    ignored = False
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.removeprefix("!").removeprefix("**/")
        tried = parts if "**/" in rule else ways
        if any(fnmatch.fnmatchcase(way, pattern) for way in tried):
            ignored = not rule.startswith("!")
    return ignored


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """/opt/relay of the image: what COPY brings, and an environment with what requirements.txt names and no more."""
    folder = tmp_path_factory.mktemp("image") / "opt/relay"
    for copied in all_of("COPY", last_stage=True):
        if copied.startswith("--from"):
            continue
        *sources, target = copied.split()
        for source in sources:
            assert (ROOT / source).exists(), f"COPY {source}"
            found = [ROOT / source, *(ROOT / source).rglob("*")]
            for path in (path for path in found if path.is_file() and not is_ignored(path.relative_to(ROOT))):
                inside = path.relative_to(ROOT / source) if (ROOT / source).is_dir() else path.name
                place = folder / target / inside
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, place)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    (packages,) = (folder / ".venv/lib").glob("python*/site-packages")
    for name in re.findall(r"(?m)^([A-Za-z0-9._-]+)==", (ROOT / "requirements.txt").read_text()):
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for other systems
        for top in {file.parts[0] for file in distribution.files if file.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).exists():
                (packages / top).symlink_to(distribution.locate_file(top))
    program = folder / ".venv/bin/gunicorn"
    original = (Path(sys.executable).parent / "gunicorn").read_text().split("\n", 1)[1]
    program.write_text(f"#!{folder}/.venv/bin/python\n{original}")
    program.chmod(0o755)
    return folder


def environment(image, folder):
    """What ENV sets, at the places of this test."""
    found = {}
    for line in all_of("ENV"):
        for pair in shlex.split(line):
            name, _, value = pair.partition("=")
            value = value.replace("/opt/relay", str(image)).replace("/var/lib/relay", str(folder))
            found[name] = value.replace("$PATH", os.environ["PATH"])
    return found


def run_check(image, **bind):
    """The exit status of HEALTHCHECK's command, and what it says."""
    command = json.loads(all_of("HEALTHCHECK")[0].partition("CMD ")[2])
    command = [part.replace("/opt/relay", str(image)) for part in command]
    done = subprocess.run(
        command, env={"PATH": f"{image}/.venv/bin"} | bind, capture_output=True, timeout=10, check=False
    )
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize("bind", ["127.0.0.1:{port}", "unix:{folder}/relay.sock"])
def test_what_the_image_holds_is_enough_to_serve_and_to_tell_its_health(image, sandbox, tmp_path, prompt, bind):
    bind = bind.format(port=free_port(), folder=tmp_path)
    settings = environment(image, tmp_path) | {
        "BIND": bind,
        "GENESYS_BASE_URL": sandbox.url,
        "OAUTH_CLIENT_ID": "sandbox-client",
        "OAUTH_CLIENT_SECRET": "sandbox-secret",
        "ACCESS": "open",
        "WEB_CONCURRENCY": "1",
    }
    status, complaint = run_check(image, BIND=bind)
    assert (status, "does not answer" in complaint) == (1, True)
    command = [part.replace("/opt/relay", str(image)) for part in json.loads(all_of("CMD")[0])]
    process = Process(command, settings, r"Listening at: ([^\s\"]+)", tmp_path)
    try:
        until(lambda: run_check(image, BIND=bind) == (0, ""), "its health")
        body = json.dumps({"conversationId": "c-image", "prompt": prompt})
        way = ["--unix-socket", bind.removeprefix("unix:")] if bind.startswith("unix:") else []
        host = "localhost" if way else bind
        ask = ["curl", "-sN", *way, "--json", body, f"http://{host}/stream-llm"]
        answer = subprocess.run(ask, capture_output=True, check=True, timeout=20)
        assert b'"status":"complete"' in answer.stdout
        assert (tmp_path / "relay.db").exists()
        page = subprocess.run(["curl", "-s", *way, f"http://{host}/"], capture_output=True, check=True, timeout=20)
        assert b"<html" in page.stdout
    finally:
        assert process.stop() == 0


def test_no_file_with_secrets_and_no_more_than_is_needed_gets_into_the_image(image):
    for path in (
        ".env",
        "deploy/relay.env",
        "deploy/tls/relay.key",
        "var/relay.db",
        ".git/config",
        "tests/conftest.py",
    ):
        assert is_ignored(path), path
    names = {path.name for path in image.iterdir()}
    assert names == {".venv", "server", "gunicorn.conf.py", "deploy"}
    assert not list((image / "server").rglob("__pycache__"))
    named = " ".join(all_of("ENV") + all_of("ARG"))
    assert not [name for name in SECRETS if name in named]


def test_the_image_takes_pinned_packages_with_hashes_runs_as_nobody_special_and_gets_to_finish():
    assert "requirements.txt ./" in all_of("COPY")
    assert not is_ignored("requirements.txt")
    assert any("--require-hashes -r requirements.txt" in line for line in all_of("RUN"))
    assert all_of("USER") == ["relay"]
    assert [name for name, _ in read_dockerfile()][-1] == "CMD"
    assert all_of("STOPSIGNAL") == ["SIGTERM"]
    assert len(all_of("FROM")) == 2, "what builds is not what runs"


@pytest.fixture(scope="module")
def services():
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())


def test_compose_names_what_there_is(services):
    own = {"relay.env", "tls/relay.crt", "tls/relay.key"}  # the operator's, as the file's head says
    head = (FOLDER / "compose.yaml").read_text().partition("\n\n")[0]
    assert "deploy/relay.env" in head
    assert "deploy/tls/" in head
    for name, service in services["services"].items():
        assert "image" in service
        assert set(service.get("networks", [])) <= set(services["networks"])
        assert set(service.get("depends_on", {})) <= set(services["services"])
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert source[2:] in own or (FOLDER / source).exists(), f"{name}: {source}"
            else:
                assert source in services["volumes"]
    assert (FOLDER / services["services"]["relay"]["build"] / "Dockerfile").exists()
    relay, nginx = services["services"]["relay"], services["services"]["nginx"]
    assert f"server {relay['environment']['BIND']};" in (FOLDER / "nginx.conf").read_text()
    assert "socket:/run/relay" in relay["volumes"]
    assert "socket:/run/relay" in nginx["volumes"]
    assert "ports" not in relay, "nginx is the door"
    assert services["networks"]["store"] == {"internal": True}
    graceful = Settings.model_fields["gateway_timeout"].default + 15
    for service in (relay, nginx):
        assert int(service["stop_grace_period"].removesuffix("s")) > graceful


def test_the_relay_runs_on_the_redis_that_compose_starts(services, start_relay, sandbox, tmp_path, prompt):
    program, *options = shlex.split(services["services"]["redis"]["command"])
    port = free_port()
    place = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path)]
    process = Process([program, *options, *place], {}, "(Ready to accept connections)")
    try:
        client = ["redis-cli", "-p", str(port), "config", "get"]
        policy = subprocess.run([*client, "maxmemory-policy"], capture_output=True, check=True, timeout=10).stdout
        assert b"noeviction" in policy
        url = services["services"]["relay"]["environment"]["STORE_URL"].replace("redis:6379", f"127.0.0.1:{port}")
        relay = start_relay(STORE_URL=url)
        assert relay.ask(prompt).finish().done["status"] == "complete"
        assert any(path.stat().st_size for path in tmp_path.rglob("*.aof")), "it is on disk"
    finally:
        process.stop()
    assert requests.get(f"{relay.url}/healthz", timeout=10).ok
