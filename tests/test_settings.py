"""Settings from the environment, and the one line that a wrong one gets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server import settings as settings_module
from server.cli import example, listing
from server.settings import SettingsError, load

WHOLE = {"OAUTH_CLIENT_ID": "client", "OAUTH_CLIENT_SECRET": "the-secret-value"}


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Only what a test sets; no .env of the working folder."""
    for name in settings_module.Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
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
    (WHOLE | {"DISCONNECT_GRACE": "-2"}, "DISCONNECT_GRACE"),
    (WHOLE | {"BIND": "8000"}, "BIND"),
    (WHOLE | {"BIND": "127.0.0.1:99999"}, "BIND"),
    (WHOLE | {"WEB_CONCURRENCY": "0"}, "WEB_CONCURRENCY"),
    (WHOLE | {"LOG_LEVEL": "LOUD"}, "LOG_LEVEL"),
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
