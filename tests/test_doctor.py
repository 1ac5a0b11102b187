"""`relay doctor` against places that are well, and that fail in every way: what it finds, and what it says to do."""

import re
import socket
from datetime import UTC, datetime, timedelta

import gevent
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from server import doctor
from server.access.keys import make_key
from server.doctor.finding import Check, State, good
from server.doctor.report import MARKS, Report

from .command import ESCAPE, lines_of, run, run_on_terminal
from .provider import Provider
from .test_transcript_tls import tls_in_front_of

SECRET = "sandbox-secret"
READ_ONLY = "/sys/relay.db"  # where no one, root included, makes a file


@pytest.fixture
def places(sandbox):
    """Settings with which all is well."""
    return {
        "GENESYS_BASE_URL": sandbox.url,
        "OAUTH_CLIENT_ID": "sandbox-client",
        "OAUTH_CLIENT_SECRET": SECRET,
        "ACCESS": "open",
    }


@pytest.fixture
def examine(tmp_path, places):
    """Runs it with settings of the test's own on top; returns its end, with the findings."""
    return lambda **settings: run(tmp_path, "doctor", "--json", **places | settings)


def states(ended):
    return {name: one["state"] for name, one in ended.findings.items()}


def failed(ended):
    """The one finding that failed."""
    assert ended.status == 1, ended.all
    (only,) = [one for one in ended.findings.values() if one["state"] == "failed"]
    assert only["fix"], "it says what to do"
    return only


def port_of(url):
    return url.rpartition(":")[2]


def test_all_is_well_and_nothing_was_written(examine, sandbox, tmp_path):
    ended = examine()
    assert ended.status == 0
    assert ended.err == ""
    assert set(states(ended).values()) == {"ok"}
    assert {"settings", "access", "open files", "login", "gateway", "transcript", "store", "clock"} <= set(
        ended.findings
    )
    assert sandbox.listed_conversations() == [], "no text was sent"
    assert sandbox.calls()["transcript"]["messages"] == 0
    assert list(tmp_path.iterdir()) == [], "the server's user is to make the file"


def test_a_store_in_use_is_written_and_left_as_it_was(examine, relay, prompt):
    before = relay.ask(prompt).finish()
    ended = examine(STORE_URL=f"sqlite:///{relay.folder.name}/relay.db")
    assert ended.findings["store"]["state"] == "ok"
    assert "wal" in ended.findings["store"]["found"]
    assert relay.state(before.id)["text"] == before.text


LOGIN = {
    "a secret that is wrong": (
        {"OAUTH_CLIENT_SECRET": "another-secret"},
        None,
        "invalid_client",
        "OAUTH_CLIENT_SECRET",
    ),
    "a scope that is not known": ({"OAUTH_SCOPE": "made:up"}, None, "Unknown scope: made:up", "OAUTH_SCOPE"),
    "a web page": ({}, "not_json", "no OAuth login", "GENESYS_OAUTH_URL"),
    "an answer without a token": ({}, "no_token", "no OAuth login", "GENESYS_OAUTH_URL"),
    "an outage": ({}, "unavailable_503", "out of order", "status page"),
    "no answer": ({}, "refused", "no answer", "stands between"),
}


@pytest.mark.parametrize(("settings", "fault", "found", "fix"), LOGIN.values(), ids=LOGIN)
def test_a_login_that_refuses_says_why_and_what_stands_on_it_is_left_out(examine, sandbox, settings, fault, found, fix):
    if fault:
        sandbox.fault("oauth", fault)
    ended = examine(**settings)
    finding = failed(ended)
    assert finding["check"] == "login"
    assert found in finding["found"]
    assert fix in finding["fix"]
    assert states(ended)["gateway"] == states(ended)["transcript"] == "skipped"
    assert "“login”" in ended.findings["gateway"]["found"]


GATEWAY = {
    "expired": ("HTTP 401", "GENESYS_OAUTH_URL"),
    "forbidden_403": ("lacks the scope ai:llm:gateway", "scope ai:llm:gateway"),
    "rate_limited": ("come back in 7 s", "quota"),
    "unavailable_503": ("HTTP 503", "try again"),
    "bad_request_400": ("HTTP 400", "GATEWAY_MODEL"),
    "redirect": ("HTTP 302", "GENESYS_GATEWAY_URL"),
    "html": ("web page", "GENESYS_GATEWAY_URL"),
    "refused": ("no answer", "stands between"),
    "cut_before_first": ("broke off", "GENESYS_GATEWAY_URL"),
}


@pytest.mark.parametrize(("fault", "words"), GATEWAY.items(), ids=GATEWAY)
def test_a_gateway_that_refuses_says_which_setting_or_right_it_is(examine, sandbox, fault, words):
    sandbox.fault("gateway", fault, retry_after=7)
    ended = examine()
    found, fix = words
    finding = failed(ended)
    assert finding["check"] == "gateway"
    assert found in finding["found"]
    assert fix in finding["fix"]
    assert states(ended)["transcript"] == "ok"


def test_a_scope_that_is_not_asked_for_is_named(examine):
    ended = examine(OAUTH_SCOPE="conversation:write")
    assert "OAUTH_SCOPE does not ask for ai:llm:gateway" in ended.findings["gateway"]["fix"]
    assert "OAUTH_SCOPE does not ask for websocket:subscribe" in ended.findings["transcript"]["fix"]


def test_an_address_without_a_gateway_and_a_key_that_is_none_are_named(examine, sandbox):
    nowhere = failed(examine(GENESYS_GATEWAY_URL=f"{sandbox.url}/nothing-here"))
    assert "HTTP 404" in nowhere["found"]
    assert "GENESYS_GATEWAY_URL" in nowhere["fix"]
    stranger = failed(examine(GATEWAY_API_KEY="a-key-of-another-gateway"))
    assert "HTTP 401" in stranger["found"]
    assert "GATEWAY_API_KEY" in stranger["fix"]


@pytest.mark.parametrize(
    ("fault", "found", "fix"),
    [
        ("refused_403", "refused with 403", "websocket:subscribe"),
        ("refused_503", "refused with 503", "try again"),
        ("closed_at_once", "1001 going away", "Genesys Cloud"),
        ("no_pongs", "no pong", "pings"),
    ],
)
def test_a_transcript_that_refuses_or_never_confirms_is_found(examine, sandbox, fault, found, fix):
    sandbox.fault("transcript", fault)
    finding = failed(examine())
    assert finding["check"] == "transcript"
    assert found in finding["found"]
    assert fix in finding["fix"]


def test_the_platform_api_is_read_and_a_missing_permission_named(examine, sandbox):
    assert states(examine(TRANSCRIPT="platform"))["transcript"] == "ok"
    sandbox.fault("platform", "forbidden_403")
    finding = failed(examine(TRANSCRIPT="platform"))
    assert finding["check"] == "transcript"
    assert "conversation:message:create" in finding["fix"]
    assert sandbox.listed_conversations() == []


def test_a_name_that_leads_nowhere_and_a_port_that_is_closed(examine, sandbox):
    ended = examine(GENESYS_GATEWAY_URL="https://relay.invalid/chat", GENESYS_TRANSCRIPT_URL="ws://127.0.0.1:1/")
    assert ended.status == 1
    assert "GENESYS_ENV" in ended.findings["name relay.invalid"]["fix"]
    assert "firewall" in ended.findings["way to 127.0.0.1:1"]["fix"]
    assert states(ended)["login"] == "ok"
    assert states(ended)["gateway"] == states(ended)["transcript"] == "skipped"


def test_with_a_proxy_names_are_the_proxys_matter(examine):
    proxy = "http://user:proxy-password@127.0.0.1:1"
    ended = examine(GENESYS_GATEWAY_URL="https://relay.invalid/chat", HTTPS_PROXY=proxy)
    assert "left to the proxy 127.0.0.1:1" in ended.findings["name relay.invalid"]["found"]
    way = failed(ended)
    assert way["check"] == "way to relay.invalid:443"
    assert "through the proxy 127.0.0.1:1" in way["found"]
    assert "HTTPS_PROXY" in way["fix"]


def make_certificate(folder, begin, end):
    """For localhost, signed by itself, good from `begin` to `end`: the files of certificate and key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, begin, end)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


@pytest.mark.parametrize(
    ("days", "trusted", "state", "found", "fix"),
    [
        (365, True, "ok", "checked with REQUESTS_CA_BUNDLE", ""),
        (5, True, "warning", "good for 5 days", "renew its certificate"),
        (-1, True, "failed", "certificate has expired", "renew its certificate"),
        (365, False, "failed", "self-signed", "REQUESTS_CA_BUNDLE"),
    ],
)
def test_a_certificate_is_checked_as_the_server_checks_it(
    examine, sandbox, tmp_path_factory, days, trusted, state, found, fix
):
    now = datetime.now(UTC)
    end = now + timedelta(days=days, hours=1)
    certificate = make_certificate(tmp_path_factory.mktemp("tls"), now - timedelta(days=30), end)
    bundle = {"REQUESTS_CA_BUNDLE": str(certificate[0])} if trusted else {}
    with tls_in_front_of(sandbox.url, certificate) as port:
        ended = examine(GENESYS_BASE_URL=f"https://localhost:{port}", **bundle)
    way = ended.findings[f"way to localhost:{port}"]
    assert way["state"] == state
    assert found in way["found"]
    assert fix in way["fix"]
    assert states(ended)["login"] == ("skipped" if state == "failed" else "ok")


@pytest.mark.parametrize(
    ("days", "trusted", "fix"),
    [(5, True, "Renew it"), (-1, True, "Renew it"), (365, False, "still has its first certificate, signed by itself")],
)
def test_the_certificate_of_the_public_address_is_the_operators_own(
    sandbox, tmp_path, tmp_path_factory, days, trusted, fix
):
    now = datetime.now(UTC)
    certificate = make_certificate(tmp_path_factory.mktemp("tls"), now - timedelta(days=30), now + timedelta(days=days))
    bundle = {"REQUESTS_CA_BUNDLE": str(certificate[0])} if trusted else {}
    with tls_in_front_of(sandbox.url, certificate) as port:
        ended = run(tmp_path, "doctor", "--json", "--url", f"https://localhost:{port}", **bundle)
    assert fix in ended.findings[f"way to localhost:{port}"]["fix"]


def test_a_redis_that_evicts_and_keeps_nothing_is_found(examine, start_redis):
    redis = start_redis("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    ended = examine(STORE_URL=redis.url)
    finding = failed(ended)
    assert finding["check"] == "store: memory"
    assert "allkeys-lru" in finding["found"]
    assert "noeviction" in finding["fix"]
    assert states(ended)["store"] == states(ended)["store: version"] == states(ended)["store: latency"] == "ok"
    assert ended.findings["store: disk"]["state"] == "warning"
    assert "Redis" in ended.findings["clock"]["found"]


def test_a_redis_as_it_should_be_is_well_and_nothing_stays_there(examine, start_redis):
    import redis as client  # noqa: PLC0415 - for this test alone

    redis = start_redis("--appendonly", "yes", "--requirepass", "redis-password")
    url = redis.url.replace("//", "//:redis-password@")
    ended = examine(STORE_URL=url)
    assert ended.status == 0
    assert set(states(ended).values()) == {"ok"}
    with client.Redis.from_url(url) as there:
        assert there.dbsize() == 0
    finding = failed(examine(STORE_URL=redis.url.replace("//", "//:wrong-password@")))
    assert "AuthenticationError" in finding["found"]


def test_a_redis_that_is_a_cluster_is_not_followed(examine, start_redis):
    # By itself it takes the port that lies 10,000 above its own for its bus, which need not be there.
    with socket.create_server(("127.0.0.1", 0)) as probe:
        bus = str(probe.getsockname()[1])
    finding = failed(examine(STORE_URL=start_redis("--cluster-enabled", "yes", "--cluster-port", bus).url))
    assert "Redis" in finding["fix"]


def test_a_folder_that_cannot_be_written_is_found(examine):
    finding = failed(examine(STORE_URL=f"sqlite:///{READ_ONLY}"))
    assert finding["check"] == "store"
    assert READ_ONLY in finding["found"]
    assert ".relay-doctor-" not in finding["found"]
    assert "STORE_URL" in finding["fix"]


def test_a_folder_that_is_not_there_and_cannot_be_made_is_found(examine):
    assert (
        "/sys/nowhere is not there, and this user may not"
        in failed(examine(STORE_URL="sqlite:////sys/nowhere/a.db"))["found"]
    )


def test_all_settings_that_are_wrong_are_told_at_once(examine):
    ended = examine(MAX_TURNS="many", RATE_LIMIT="often", GENESYS_GATEWAY_URL="nowhere")
    assert ended.status == 2
    found = [line for line in ended.out.splitlines() if '"found"' in line]
    assert len(found) == 3
    for name in ("MAX_TURNS", "RATE_LIMIT", "GENESYS_GATEWAY_URL"):
        assert any(name in line for line in found)


def test_without_an_account_it_says_what_is_missing(tmp_path):
    ended = run(tmp_path, "doctor")
    assert ended.status == 2
    assert "OAUTH_CLIENT_ID is missing" in ended.out


def test_where_no_one_may_ask_all_else_is_looked_at(examine):
    ended = examine(ACCESS="keys")
    assert failed(ended)["check"] == "access"
    assert "relay keys new" in ended.findings["access"]["fix"]
    assert states(ended)["gateway"] == "ok"


def test_in_an_app_the_app_says_who_may_ask_and_the_prefix_whose_setting_it_is(examine):
    ended = examine(ACCESS="app", SECRET_KEY="the app's", RATE_LIMIT="100 per hour", RELAY_RATE_LIMIT="off")
    assert ended.status == 0, ended.all
    assert ended.findings["access"]["found"] == "whom the app names that mounts the relay"


def test_what_is_open_to_all_and_more_turns_than_files_are_worth_a_warning(examine):
    ended = examine(BIND="0.0.0.0:8000", MAX_TURNS="10000000")
    assert ended.status == 0, "a warning is no failure"
    assert "relay keys new" in ended.findings["access"]["fix"]
    assert "LimitNOFILE" in ended.findings["open files"]["fix"]
    assert states(ended)["access"] == states(ended)["open files"] == "warning"


def test_the_keys_of_a_token_issuer_are_fetched(examine):
    provider = Provider()
    try:
        provider.add("k-1")
        assert states(examine(**provider.settings))["token issuer"] == "ok"
        provider.body = b"<html>"
        finding = failed(examine(**provider.settings))
    finally:
        provider.close()
    assert finding["check"] == "token issuer"
    assert "JWT_JWKS_URL" in finding["fix"]


def test_no_secret_is_in_anything_that_it_prints(tmp_path, places, sandbox):
    fresh = make_key("shop")
    hidden = {
        "GATEWAY_API_KEY": "static-bearer-of-the-gateway",
        "STORE_URL": "redis://:redis-password@127.0.0.1:1/0",
        "SECRET_KEY": "a-secret-key-of-more-than-32-characters",
        "HTTPS_PROXY": "http://user:proxy-password@127.0.0.1:1",
        "RELAY_KEY": fresh.key,
        "RELAY_API_KEYS": fresh.entry,
    }
    printed = ""
    for settings in (hidden, hidden | {"MAX_TURNS": "x", "GATEWAY_API_KEY": "two words"}, {"OAUTH_CLIENT_SECRET": "s"}):
        for form in ([], ["--json"]):
            sandbox.fault("gateway", "forbidden_403")
            printed += run(tmp_path, "doctor", *form, "--url", "http://127.0.0.1:1", **places | settings).all
    for fault in ("cut_before_first", "html", "expired"):
        sandbox.fault("gateway", fault)
        sandbox.fault("transcript", "refused_401")
        printed += run(tmp_path, "doctor", **places | {"LOG_LEVEL": "DEBUG"}).all
    assert sandbox.tokens(), "there were access tokens to be printed"
    secrets = [SECRET, *(re.sub(".*:", "", value.partition("@")[0]) for value in hidden.values()), *sandbox.tokens()]
    for secret in {*secrets, "two words"}:
        assert secret not in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("columns", [60, 140])
def test_on_a_terminal_it_shows_marks_and_fits_the_width(tmp_path, places, columns):
    ended = run_on_terminal(tmp_path, columns, "doctor", **places | {"GENESYS_TRANSCRIPT_URL": "ws://127.0.0.1:1/"})
    assert ended.status == 1
    assert "\x1b[32m✓" in ended.out, "a green mark"
    lines = lines_of(ended.out)
    assert max(map(len, lines)) <= columns
    assert any(line.startswith("✗ way to 127.0.0.1:1") for line in lines)
    assert "→ Open the firewall" in " ".join(lines)
    assert "1 failed" in lines[-2]


def test_without_colours_and_in_a_pipe_it_prints_plain_lines(tmp_path, places):
    plain = run(tmp_path, "doctor", **places)
    assert ESCAPE.search(plain.out) is None
    assert re.search(r"^✓ gateway: first token after \d+ ms$", plain.out, re.MULTILINE)
    calm = run_on_terminal(tmp_path, 100, "doctor", **places | {"NO_COLOR": "1"})
    assert "\x1b[32m" not in calm.out
    assert any(line.startswith("✓ gateway") for line in lines_of(calm.out))


def test_a_check_that_never_ends_or_breaks_does_not_hide_the_others(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CHECK_TIMEOUT", 0.05)

    def breaks():
        raise RuntimeError("a text that may quote a secret")

    checks = [
        Check("never ends", lambda: gevent.sleep(60)),
        Check("stands on it", lambda: good("never looked at"), ("never ends",)),
        Check("breaks", breaks),
        Check("is well", lambda: good("well")),
    ]
    found = doctor.examine(checks, Report(as_json=False))
    assert [one.state for one in found] == [State.FAILED, State.SKIPPED, State.FAILED, State.OK]
    printed = capsys.readouterr().out
    assert "RuntimeError" in printed
    assert "secret" not in printed
    assert all(mark in printed for mark in (MARKS[State.FAILED], MARKS[State.SKIPPED], MARKS[State.OK]))
