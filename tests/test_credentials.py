"""The access token: how long it is taken to live, when another one is fetched, by which bundle the login is trusted."""

import time
from types import SimpleNamespace

import pytest

from server import credentials as credentials_module
from server.credentials import DEFAULT_LIFE, MAX_LIFE, Credentials, read_answer
from server.errors import CredentialsRejected

SCOPE = "ai:llm:gateway conversation:write websocket:subscribe"
LIVES = [
    ("3600", 3600.0),
    ('"3600"', 3600.0),
    ("1.5", 1.5),
    ("NaN", DEFAULT_LIFE),
    ('"nan"', DEFAULT_LIFE),
    ("Infinity", DEFAULT_LIFE),
    ('"-inf"', DEFAULT_LIFE),
    ("1e999", DEFAULT_LIFE),
    ("9" * 5000, DEFAULT_LIFE),
    ("1e300", MAX_LIFE),
    ("9" * 30, MAX_LIFE),
    ("-1", DEFAULT_LIFE),
    ("0", DEFAULT_LIFE),
    ("1e-9", DEFAULT_LIFE),
    ("null", DEFAULT_LIFE),
    ("true", DEFAULT_LIFE),
    ('"soon"', DEFAULT_LIFE),
    ("[]", DEFAULT_LIFE),
    ("{}", DEFAULT_LIFE),
]


def answer_of(body, status=200):
    return read_answer(SimpleNamespace(status_code=status, headers={}), body.encode(), lambda: 100.0)


@pytest.mark.parametrize(("expires_in", "life"), LIVES)
def test_a_life_that_cannot_be_is_replaced(expires_in, life):
    assert answer_of(f'{{"access_token": "t", "expires_in": {expires_in}}}').ends == 100.0 + life


@pytest.mark.parametrize(
    "body", ["", "[]", "1", '"t"', "{}", '{"access_token": 1}', '{"access_token": "\\ud800"}', "[" * 60_000]
)
def test_an_answer_without_a_usable_token_is_a_refusal(body):
    with pytest.raises(CredentialsRejected):
        answer_of(body)


@pytest.fixture
def credentials(sandbox):
    found = Credentials(f"{sandbox.url}/oauth/token", "sandbox-client", "sandbox-secret", SCOPE)
    yield found
    found.close()


def test_a_place_that_refuses_every_token_gets_one_other(credentials, sandbox):
    before = sandbox.calls()["oauth"]["calls"]
    first = credentials.token()
    second = credentials.renew(first)
    assert second != first
    for _ in range(10):
        assert credentials.renew(first) == credentials.renew(second) == credentials.token() == second
    assert sandbox.calls()["oauth"]["calls"] - before == 2


def test_a_token_that_is_refused_later_is_replaced_again(credentials, monkeypatch):
    monkeypatch.setattr(credentials_module, "REFUSED_AGAIN", 0.05)
    second = credentials.renew(credentials.token())
    time.sleep(0.1)
    assert credentials.renew(second) != second


def test_a_refused_token_is_kept_for_others_while_the_login_gives_no_other(credentials, sandbox):
    first = credentials.token()
    sandbox.fault("oauth", "invalid_client", calls=1)
    with pytest.raises(CredentialsRejected):
        credentials.renew(first)
    assert credentials.token() == first
    assert credentials.renew(first) != first


BUNDLES = ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"]  # the first that is set counts


@pytest.mark.parametrize("first", range(len(BUNDLES) + 1))
def test_the_login_is_checked_with_the_bundle_that_tls_uses(monkeypatch, first):
    for number, name in enumerate(BUNDLES):
        monkeypatch.setenv(name, f"/bundle/{name}" if number >= first else "")
    session = Credentials("https://login.example/oauth/token", "a", "b", SCOPE)._session
    found = session.merge_environment_settings("https://login.example/", {}, True, None, None)["verify"]
    assert found == (f"/bundle/{BUNDLES[first]}" if first < len(BUNDLES) else True)
