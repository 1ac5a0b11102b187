"""Settings from the environment, and the one line that a wrong one gets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server import settings as settings_module
from server.access.keys import Keyring, make_key, read_keys
from server.cli import example, listing
from server.settings import NoAccess, NoOrganisation, SettingsError, host_and_port, load

WHOLE = {"OAUTH_CLIENT_ID": "client", "OAUTH_CLIENT_SECRET": "the-secret-value"}


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Only what a test sets, and open access; no .env of the working folder."""
    for name in settings_module.Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("ACCESS", "open")
    monkeypatch.chdir(tmp_path)

    def use(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        return load()

    return use


def test_the_seeds_four_settings_are_enough(environment):
    found = environment(**WHOLE, GENESYS_ENV="globex", DEFAULT_CONVERSATION_ID="c-1")
    assert found.genesys_oauth_url == "https://globex.mypurecloud.com/oauth/token"
    assert found.genesys_gateway_url == "https://globex.mypurecloud.com/api/v2/ai/llm/gateway/chat"
    assert found.genesys_transcript_url == "wss://globex.mypurecloud.com/v2/conversations/websockets"


def test_an_environment_with_a_dot_is_the_host_itself(environment):
    assert environment(**WHOLE, GENESYS_ENV="login.mypurecloud.de").genesys_base_url == "https://login.mypurecloud.de"


def test_places_are_derived_from_the_base_unless_set(environment):
    found = environment(
        **WHOLE, GENESYS_BASE_URL="http://127.0.0.1:9/", GENESYS_OAUTH_URL="https://login.example/token"
    )
    assert found.genesys_oauth_url == "https://login.example/token"
    assert found.genesys_gateway_url == "http://127.0.0.1:9/api/v2/ai/llm/gateway/chat"
    assert found.genesys_transcript_url == "ws://127.0.0.1:9/v2/conversations/websockets"


APIS = [
    ({}, "https://api.mypurecloud.com"),
    ({"GENESYS_ENV": "login.mypurecloud.com.au"}, "https://api.mypurecloud.com.au"),
    ({"GENESYS_ENV": "usw2.pure.cloud"}, "https://api.usw2.pure.cloud"),
    ({"GENESYS_BASE_URL": "https://APPS.euw2.pure.cloud/x/"}, "https://api.euw2.pure.cloud"),
    ({"GENESYS_BASE_URL": "http://127.0.0.1:9/"}, "http://127.0.0.1:9"),
    ({"GENESYS_BASE_URL": "https://genesys.acme.example"}, "https://genesys.acme.example"),
    ({"GENESYS_ENV": "notmypurecloud.com"}, "https://notmypurecloud.com"),
    ({"GENESYS_ENV": "mypurecloud.com.evil.example"}, "https://mypurecloud.com.evil.example"),
    ({"GENESYS_API_URL": "https://gateway.acme.example/genesys"}, "https://gateway.acme.example/genesys"),
]


@pytest.mark.parametrize(("values", "expected"), APIS)
def test_the_platform_api_is_that_of_the_region(environment, values, expected):
    assert environment(**WHOLE, **values).genesys_api_url == expected


def test_with_the_platform_as_transcript_the_login_is_that_of_the_region(environment):
    platform = WHOLE | {"TRANSCRIPT": "platform"}
    assert environment(**platform).genesys_oauth_url == "https://login.mypurecloud.com/oauth/token"
    assert environment(**platform, GENESYS_OAUTH_URL="https://x/token").genesys_oauth_url == "https://x/token"


def test_elsewhere_the_login_stays_with_the_base(environment):
    found = environment(**WHOLE, TRANSCRIPT="platform", GENESYS_BASE_URL="http://127.0.0.1:9")
    assert found.genesys_oauth_url == "http://127.0.0.1:9/oauth/token"


def test_the_platform_needs_oauth_whatever_the_gateway_has(environment):
    with pytest.raises(SettingsError, match="OAUTH_CLIENT_ID"):
        environment(GATEWAY_API_KEY="key", TRANSCRIPT="platform")


def test_an_empty_value_is_no_value(environment):
    assert environment(**WHOLE, GATEWAY_MODEL="", GENESYS_ENV="").gateway_model is None


def test_a_file_named_env_is_read(environment, tmp_path):
    (tmp_path / ".env").write_text("OAUTH_CLIENT_ID=a\nOAUTH_CLIENT_SECRET=b\nMAX_TURNS=7\n")
    assert environment().max_turns == 7


def test_a_gateway_with_a_key_and_no_transcript_needs_no_oauth(environment):
    assert not environment(GATEWAY_API_KEY="key", TRANSCRIPT="off").needs_oauth


def test_the_example_file_names_every_setting_with_its_default():
    assert (Path(__file__).parent.parent / ".env.example").read_text() == example() + "\n"


def test_the_listing_hides_secrets(environment):
    listed = listing(environment(**WHOLE))
    assert "the-secret-value" not in listed
    assert "OAUTH_CLIENT_SECRET=(hidden)" in listed


IMPOSSIBLE = [
    ({}, "OAUTH_CLIENT_ID"),
    ({"OAUTH_CLIENT_ID": "a"}, "OAUTH_CLIENT_SECRET"),
    (WHOLE | {"GENESYS_BASE_URL": "ftp://x"}, "GENESYS_BASE_URL"),
    (WHOLE | {"GENESYS_GATEWAY_URL": "nonsense"}, "GENESYS_GATEWAY_URL"),
    (WHOLE | {"GENESYS_GATEWAY_URL": "http://h:99999/"}, "GENESYS_GATEWAY_URL"),
    (WHOLE | {"GENESYS_TRANSCRIPT_URL": "https://x"}, "GENESYS_TRANSCRIPT_URL"),
    (WHOLE | {"GATEWAY_TIMEOUT": "0"}, "GATEWAY_TIMEOUT"),
    (WHOLE | {"GATEWAY_TIMEOUT": "soon"}, "GATEWAY_TIMEOUT"),
    (WHOLE | {"GATEWAY_TIMEOUT": "nan"}, "GATEWAY_TIMEOUT"),
    (WHOLE | {"GATEWAY_TIMEOUT": "inf"}, "GATEWAY_TIMEOUT"),
    (WHOLE | {"GATEWAY_MAX_RETRIES": "0"}, "GATEWAY_MAX_RETRIES"),
    (WHOLE | {"GATEWAY_TEMPERATURE": "3"}, "GATEWAY_TEMPERATURE"),
    (WHOLE | {"TRANSCRIPT": "pigeon"}, "TRANSCRIPT"),
    (WHOLE | {"TRANSCRIPT_MAX_CHARS": "99"}, "TRANSCRIPT_MAX_CHARS"),
    (WHOLE | {"TRANSCRIPT_MAX_BYTES": "2047"}, "TRANSCRIPT_MAX_BYTES"),
    (WHOLE | {"TRANSCRIPT_REQUESTS_PER_MINUTE": "0"}, "TRANSCRIPT_REQUESTS_PER_MINUTE"),
    (
        WHOLE | {"TRANSCRIPT": "platform", "TRANSCRIPT_REQUESTS_PER_MINUTE": "3", "WEB_CONCURRENCY": "4"},
        "TRANSCRIPT_REQUESTS_PER_MINUTE=3 cannot be right: each of the 4 workers",
    ),
    (WHOLE | {"GENESYS_API_URL": "wss://x"}, "GENESYS_API_URL"),
    (WHOLE | {"DISCONNECT_GRACE": "-2"}, "DISCONNECT_GRACE"),
    (WHOLE | {"RATE_LIMIT": "60"}, "RATE_LIMIT='60' cannot be right: must be NUMBER/UNIT"),
    (WHOLE | {"RATE_LIMIT": "0/minute"}, "RATE_LIMIT"),
    (WHOLE | {"MAX_TURNS_PER_CALLER": "0"}, "MAX_TURNS_PER_CALLER='0' cannot be right: must be a whole number"),
    (WHOLE | {"BIND": "8000"}, "BIND"),
    (WHOLE | {"BIND": "127.0.0.1:99999"}, "BIND"),
    (WHOLE | {"BIND": "127.0.0.1:٨٠٠٠"}, "BIND"),
    (WHOLE | {"BIND": "127.0.0.1:65536"}, "BIND"),
    (WHOLE | {"BIND": "127.0.0.1:" + "9" * 5000}, "BIND"),
    (WHOLE | {"BIND": "::1:8000"}, "BIND"),
    (WHOLE | {"BIND": "[::g]:8000"}, "BIND"),
    (WHOLE | {"BIND": "unix:"}, "BIND"),
    (WHOLE | {"BIND": "http://127.0.0.1:8000"}, "BIND"),
    (WHOLE | {"GENESYS_ENV": "https://acme.mypurecloud.com"}, "GENESYS_ENV"),
    (WHOLE | {"GENESYS_ENV": "acme corp"}, "GENESYS_ENV"),
    (WHOLE | {"GENESYS_ENV": "acme/x"}, "GENESYS_ENV"),
    (WHOLE | {"GENESYS_ENV": "user@acme.example"}, "GENESYS_ENV"),
    (WHOLE | {"GENESYS_ENV": "acmé"}, "GENESYS_ENV"),
    (WHOLE | {"GENESYS_ENV": "acme..example"}, "GENESYS_ENV"),
    (WHOLE | {"GENESYS_ENV": "-acme"}, "GENESYS_ENV"),
    (WHOLE | {"GENESYS_ENV": "a" * 64}, "GENESYS_ENV"),
    (WHOLE | {"GENESYS_BASE_URL": "http://[::1"}, "GENESYS_BASE_URL"),
    (WHOLE | {"GENESYS_BASE_URL": "http://host:port"}, "GENESYS_BASE_URL"),
    (WHOLE | {"GENESYS_OAUTH_URL": "https://host/a token"}, "GENESYS_OAUTH_URL"),
    (WHOLE | {"GENESYS_GATEWAY_URL": "https://host/chât"}, "GENESYS_GATEWAY_URL"),
    (WHOLE | {"GENESYS_GATEWAY_URL": "https://host/ch\nat"}, "GENESYS_GATEWAY_URL"),
    (WHOLE | {"GENESYS_TRANSCRIPT_URL": "wss://host/\u00e9"}, "GENESYS_TRANSCRIPT_URL"),
    (WHOLE | {"DEFAULT_CONVERSATION_ID": "x" * 201}, "DEFAULT_CONVERSATION_ID"),
    (WHOLE | {"DEFAULT_CONVERSATION_ID": "a\nb"}, "DEFAULT_CONVERSATION_ID"),
    ({"OAUTH_CLIENT_ID": "  ", "OAUTH_CLIENT_SECRET": "b"}, "OAUTH_CLIENT_ID is missing"),
    ({"OAUTH_CLIENT_ID": "a", "OAUTH_CLIENT_SECRET": " \t"}, "OAUTH_CLIENT_SECRET is missing"),
    ({"GATEWAY_API_KEY": "  ", "TRANSCRIPT": "off"}, "OAUTH_CLIENT_ID is missing"),
    ({"OAUTH_CLIENT_ID": "a\u200bb", "OAUTH_CLIENT_SECRET": "b"}, "OAUTH_CLIENT_ID"),
    ({"OAUTH_CLIENT_ID": "a", "OAUTH_CLIENT_SECRET": "the-secret-value\u00e9"}, "OAUTH_CLIENT_SECRET=(hidden)"),
    ({"GATEWAY_API_KEY": "Bearer the-secret-value", "TRANSCRIPT": "off"}, "GATEWAY_API_KEY=(hidden)"),
    ({"GATEWAY_API_KEY": "the-secret-value\nx", "TRANSCRIPT": "off"}, "GATEWAY_API_KEY=(hidden)"),
    (WHOLE | {"STORE_URL": "relay.db"}, "STORE_URL"),
    (WHOLE | {"STORE_URL": "postgres://host"}, "STORE_URL"),
    (WHOLE | {"STORE_URL": "sqlite:///"}, "STORE_URL"),
    (WHOLE | {"STORE_URL": "sqlite:///var/"}, "STORE_URL"),
    (WHOLE | {"STORE_URL": "sqlite://var/relay.db"}, "STORE_URL"),
    (WHOLE | {"STORE_URL": "redis:///0"}, "STORE_URL"),
    (WHOLE | {"STORE_URL": "redis://host:0"}, "STORE_URL"),
    (WHOLE | {"STORE_URL": "redis://:the-secret-value@[host]"}, "STORE_URL='redis://:(hidden)@[host]'"),
    (WHOLE | {"STORE_URL": "redis://:the-secret-value/x@host"}, "STORE_URL='redis://:(hidden)@host'"),
    (WHOLE | {"STORE_URL": "redis://user:the-secret-value@host:99999"}, "STORE_URL='redis://user:(hidden)@host:99999'"),
    (WHOLE | {"STORE_URL": "memory://x"}, "STORE_URL"),
    (WHOLE | {"STORE_URL": "memory://", "WEB_CONCURRENCY": "2"}, "WEB_CONCURRENCY=2"),
    (WHOLE | {"WEB_CONCURRENCY": "0"}, "WEB_CONCURRENCY"),
    (WHOLE | {"LOG_LEVEL": "LOUD"}, "LOG_LEVEL"),
    (WHOLE | {"CORS_ORIGINS": "shop.example"}, "CORS_ORIGINS='shop.example' cannot be right"),
    (WHOLE | {"CORS_ORIGINS": "https://shop.example/"}, "CORS_ORIGINS"),
    (WHOLE | {"CORS_ORIGINS": "https://shop.example/page"}, "CORS_ORIGINS"),
    (WHOLE | {"CORS_ORIGINS": "https://shop.example?"}, "CORS_ORIGINS"),
    (WHOLE | {"CORS_ORIGINS": "https://user@shop.example"}, "CORS_ORIGINS"),
    (WHOLE | {"CORS_ORIGINS": "https://"}, "CORS_ORIGINS"),
    (WHOLE | {"CORS_ORIGINS": "null"}, "CORS_ORIGINS"),
    (WHOLE | {"CORS_ORIGINS": "https://*.shop.example"}, "CORS_ORIGINS"),
    (WHOLE | {"CORS_ORIGINS": "https://bücher.example"}, "CORS_ORIGINS"),
    (WHOLE | {"CORS_ORIGINS": "https://shop.example:99999"}, "CORS_ORIGINS"),
    (WHOLE | {"CORS_ORIGINS": "https://shop.example *"}, "CORS_ORIGINS=* cannot be right: with ACCESS=open"),
    (WHOLE | {"ALLOWED_HOSTS": "https://relay.example"}, "ALLOWED_HOSTS='https://relay.example' cannot be right"),
    (WHOLE | {"ALLOWED_HOSTS": "relay.example:443"}, "ALLOWED_HOSTS"),
    (WHOLE | {"ALLOWED_HOSTS": "*.relay.example"}, "ALLOWED_HOSTS"),
    (WHOLE | {"ALLOWED_HOSTS": "::1"}, "ALLOWED_HOSTS"),
    (WHOLE | {"ALLOWED_HOSTS": "[relay.example]"}, "ALLOWED_HOSTS"),
    (WHOLE | {"ALLOWED_HOSTS": "."}, "ALLOWED_HOSTS"),
]


@pytest.mark.parametrize(("values", "name"), IMPOSSIBLE)
def test_a_setting_that_cannot_be_right_is_named_in_one_line(environment, values, name):
    with pytest.raises(SettingsError) as error:
        environment(**values)
    assert str(error.value).startswith(name)
    assert "\n" not in str(error.value)
    assert "the-secret-value" not in str(error.value)


def test_a_password_in_an_address_is_refused_and_not_shown(environment):
    with pytest.raises(SettingsError) as error:
        environment(**WHOLE, GENESYS_BASE_URL="https://user:hunter2@host")
    assert "hunter2" not in str(error.value)


def test_secrets_and_other_values_are_taken_without_the_blanks_around_them(environment):
    found = environment(
        OAUTH_CLIENT_ID=" client\t", OAUTH_CLIENT_SECRET=" secret\n", GATEWAY_API_KEY=" key ", BIND=" 127.0.0.1:1 "
    )
    assert found.oauth_client_id == "client"
    assert found.secrets == ("secret", "key")
    assert found.bind == "127.0.0.1:1"


def test_a_client_with_half_its_settings_is_not_taken_for_none_at_all(environment):
    with pytest.raises(NoOrganisation):
        environment()
    with pytest.raises(SettingsError) as error:
        environment(OAUTH_CLIENT_SECRET="the-secret-value")
    assert not isinstance(error.value, NoOrganisation)


@pytest.mark.parametrize(
    ("bind", "host", "port"),
    [("127.0.0.1:8000", "127.0.0.1", 8000), ("[::1]:8000", "::1", 8000), ("relay.example:0", "relay.example", 0)],
)
def test_a_bind_address_is_host_and_port(environment, bind, host, port):
    assert host_and_port(environment(**WHOLE, BIND=bind).bind) == (host, port)


@pytest.mark.parametrize("content", [b"MAX_TURNS=7\n# caf\xe9\n", b"\xff\xfeM\x00"])
def test_an_env_file_in_another_encoding_gets_one_line(environment, tmp_path, content):
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(SettingsError, match=r"^\.env cannot be read: .*UTF-8.*$"):
        environment(**WHOLE)


STORES = [
    "sqlite:///var/relay.db",
    "sqlite:////var/lib/relay/relay.db",
    "sqlite:///my folder/antwört.db",
    "redis://localhost",
    "redis://[::1]:6379/0",
    "rediss://user:password@redis.example:6380/1?ssl_cert_reqs=none",
    "memory://",
]


@pytest.mark.parametrize("url", STORES)
def test_a_store_is_a_file_redis_or_memory(environment, url):
    assert environment(**WHOLE, STORE_URL=url).store_url == url


def test_a_password_of_the_store_is_a_secret_and_not_shown(environment):
    found = environment(**WHOLE, STORE_URL="rediss://relay:hunter%2F2@host:6380/1")
    assert {"hunter%2F2", "hunter/2"} < set(found.secrets)
    assert "STORE_URL=rediss://relay:(hidden)@host:6380/1\n" in listing(found)
    assert "hunter" not in repr(found)


def test_there_is_a_worker_for_each_cpu_but_one_alone_with_memory(environment):
    assert environment(**WHOLE).web_concurrency == os.cpu_count()
    assert environment(STORE_URL="memory://").web_concurrency == 1


def test_the_server_does_not_start_and_says_one_line(tmp_path):
    names = {name.upper() for name in settings_module.Settings.model_fields}
    clean = {name: value for name, value in os.environ.items() if name not in names}
    config = os.path.abspath("gunicorn.conf.py")  # noqa: PTH100 - as the shell would
    command = [sys.executable, "-m", "gunicorn", "-c", config, "--chdir", str(tmp_path)]
    environment = clean | {"PYTHONPATH": os.path.dirname(config)}  # noqa: PTH120
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("OAUTH_CLIENT_ID is missing")


def test_a_proxy_that_cannot_be_used_ends_the_start_and_says_so(start_relay):
    with pytest.raises(AssertionError, match=r"The proxy for gateway.test begins with socks5://") as stopped:
        start_relay(GENESYS_BASE_URL="https://gateway.test", HTTPS_PROXY="socks5://user:hunter2@proxy:1080")
    assert "hunter2" not in str(stopped.value)
    assert "Traceback" not in str(stopped.value)


FRESH = make_key("shop")
PROVIDER = {"JWT_JWKS_URL": "https://id.example/keys", "JWT_ISSUER": "https://id.example/", "JWT_AUDIENCE": "relay"}


@pytest.mark.parametrize("more", [{}, {"ACCESS": "keys"}, {"RELAY_API_KEYS": " , "}])
def test_without_keys_nothing_starts_and_the_refusal_brings_a_key_that_will_do(environment, more):
    with pytest.raises(NoAccess) as refusal:
        environment(**WHOLE | {"ACCESS": ""} | more)
    first, second = str(refusal.value).split("\n")
    name, _, value = second.rpartition(" ")[2].partition("=")
    assert name == "RELAY_API_KEYS"
    assert Keyring(read_keys(value)).name_of(first.rpartition(" ")[2]) == "client"
    assert environment(**WHOLE, RELAY_API_KEYS=value, ACCESS="").access == "keys"


def test_each_refusal_brings_another_key(environment):
    assert len({refused(environment, **WHOLE, ACCESS="") for _ in range(3)}) == 3


def refused(environment, **values):
    with pytest.raises(SettingsError) as refusal:
        environment(**values)
    return str(refusal.value)


def test_a_file_of_keys_is_enough(environment, tmp_path):
    assert environment(**WHOLE, ACCESS="", RELAY_API_KEYS_FILE=str(tmp_path / "keys")).access == "keys"


def test_an_identity_provider_is_enough_and_means_tokens(environment):
    assert environment(**WHOLE, **PROVIDER, ACCESS="").access == "jwt"


@pytest.mark.parametrize("missing", ["JWT_JWKS_URL", "JWT_ISSUER", "JWT_AUDIENCE"])
def test_tokens_take_all_three_of_their_settings(environment, missing):
    line = refused(environment, **WHOLE | PROVIDER | {"ACCESS": "jwt", missing: ""})
    assert line.startswith(f"{missing} is missing")


@pytest.mark.parametrize(
    "values",
    [
        {"RELAY_API_KEYS": FRESH.key},
        {"RELAY_API_KEYS": f"shop:{FRESH.key}"},
        {"RELAY_API_KEYS": f"{FRESH.entry},{FRESH.key}"},
        {"SECRET_KEY": FRESH.key[:31]},
    ],
)
def test_a_secret_in_the_wrong_place_is_not_shown(environment, values):
    line = refused(environment, **WHOLE, **values)
    assert line.startswith(f"{next(iter(values))}=(hidden) cannot be right")
    assert FRESH.key[:31] not in line


@pytest.mark.parametrize(
    "bind", ["127.0.0.1:8000", "127.8.0.1:8000", "[::1]:8000", "localhost:8000", "unix:/run/relay"]
)
def test_open_access_on_this_machine_alone_is_no_risk(environment, bind):
    assert environment(**WHOLE, BIND=bind).risks == []


@pytest.mark.parametrize("bind", ["0.0.0.0:8000", "[::]:8000", "192.0.2.1:8000", "relay.example:8000"])
def test_open_access_for_others_is_a_risk(environment, bind):
    assert "ACCESS=open" in environment(**WHOLE, BIND=bind).risks[0]
    assert environment(**WHOLE, BIND=bind, ACCESS="keys", RELAY_API_KEYS=FRESH.entry).risks == []


def test_keys_beside_open_access_and_keys_fetched_in_the_clear_are_risks(environment):
    assert "asks no one" in environment(**WHOLE, RELAY_API_KEYS=FRESH.entry).risks[0]
    clear = {"ACCESS": "jwt", "JWT_JWKS_URL": "http://id.example/keys"}
    assert "without TLS" in environment(**WHOLE | PROVIDER | clear).risks[0]


def test_the_listing_hides_keys(environment):
    listed = listing(environment(**WHOLE, ACCESS="keys", RELAY_API_KEYS=FRESH.entry, SECRET_KEY="s" * 32))
    assert FRESH.entry not in listed
    assert "s" * 32 not in listed


def test_origins_are_taken_as_browsers_send_them(environment):
    found = environment(**WHOLE, CORS_ORIGINS="https://Shop.example:443,  http://localhost:3000 capacitor://localhost")
    assert found.cors_origins == ("https://shop.example", "http://localhost:3000", "capacitor://localhost")
    assert "CORS_ORIGINS=https://shop.example,http://localhost:3000,capacitor://localhost\n" in listing(found)
    assert environment(**WHOLE, CORS_ORIGINS="").cors_origins == ()


def test_any_origin_is_let_in_only_where_something_is_asked_for(environment):
    assert environment(**WHOLE, ACCESS="keys", RELAY_API_KEYS=FRESH.entry, CORS_ORIGINS="*").cors_origins == ("*",)


LOCAL = ("localhost", "127.0.0.1", "[::1]")
HOSTS = [
    ({}, (*LOCAL, "127.0.0.1")),
    ({"BIND": "127.8.0.1:8000"}, (*LOCAL, "127.8.0.1")),
    ({"BIND": "[::1]:8000"}, (*LOCAL, "[::1]")),
    ({"ALLOWED_HOSTS": "Relay.example, .shop.example"}, (*LOCAL, "127.0.0.1", "relay.example", ".shop.example")),
    ({"ALLOWED_HOSTS": "*"}, None),
    ({"BIND": "0.0.0.0:8000"}, None),
    ({"BIND": "unix:/run/relay"}, None),
    (
        {"BIND": "0.0.0.0:8000", "ALLOWED_HOSTS": "relay.example,[2001:db8::1]"},
        (*LOCAL, "relay.example", "[2001:db8::1]"),
    ),
    ({"BIND": "unix:/run/relay", "ALLOWED_HOSTS": "relay.example"}, (*LOCAL, "relay.example")),
]


@pytest.mark.parametrize(("values", "hosts"), HOSTS)
def test_names_that_lead_here_are_those_of_loopback_where_only_loopback_leads_here(environment, values, hosts):
    assert environment(**WHOLE, **values).hosts == hosts


def test_a_log_with_prompts_and_answers_is_a_risk(environment):
    assert "LOG_CONTENT=1" in environment(**WHOLE, LOG_CONTENT="1", LOG_LEVEL="DEBUG").risks[0]
    assert environment(**WHOLE, LOG_CONTENT="1", LOG_LEVEL="INFO").risks == []
