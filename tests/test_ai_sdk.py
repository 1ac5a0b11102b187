"""The AI SDK (npm `ai` with `@ai-sdk/openai-compatible`) against the real server: text, tools, usage, errors."""

import json
import os
import subprocess

import pytest

from server.access.keys import make_key

from .conftest import ROOT
from .test_openai import call_deltas

SCRIPT = ROOT / "tests" / "npm" / "ai-sdk.mjs"
ANN = make_key("ann")


@pytest.fixture
def found(start_relay, sandbox, prompt):
    """What the script saw."""
    relay = start_relay(ACCESS="keys", RELAY_API_KEYS=ANN.entry, TRANSCRIPT="off", GATEWAY_MAX_RETRIES="1")
    sandbox.script(f"{prompt} text", [{"reasoning_content": "Hm."}, "Hel", "lo"])
    arguments = call_deltas('{"city":', f'"{prompt}"}}')
    sandbox.script(f"{prompt} tool", arguments, finish_reason="tool_calls")
    sandbox.script(f"21 degrees in {prompt}", ["It is ", "warm."])
    sandbox.script(f"{prompt} cut", ["a", "b", "c"])
    sandbox.fault("gateway", "cut", prompt=f"{prompt} cut", after=2)
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    command = ["node", str(SCRIPT), relay.url, ANN.key, prompt]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_the_ai_sdk_streams_generates_calls_tools_and_understands_errors(found):
    streamed, whole = found["streamed"], found["whole"]
    assert (streamed["pieces"], streamed["reason"], streamed["reasoning"]) == (["Hel", "lo"], "stop", "Hm.")
    assert (whole["text"], whole["reason"]) == ("Hello", "stop")
    assert streamed["usage"]["outputTokens"] == whole["usage"]["outputTokens"] == 3
    assert len(whole["id"]) == 22, "the turn's id"
    assert found["called"]["text"] == found["calling"]["text"] == "It is warm."
    assert found["called"]["results"][0].startswith("21 degrees in question")
    assert {"tool-input-delta", "tool-call", "tool-result"} <= set(found["calling"]["parts"])
    *said, error = found["broken"]
    assert said == ["a", "b"]
    assert "broke off" in error["error"]
    assert (found["refused"]["api"], found["refused"]["status"]) == (True, 401)
    assert "key or token" in found["refused"]["message"]
