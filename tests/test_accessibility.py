"""The page by axe-core's rules: at phone and desktop width, light and dark, in the states in which people meet it."""

import pytest
from playwright.sync_api import expect

from server.access.keys import make_key

from .conftest import ROOT, RelayServer

AXE = (ROOT / "tests/npm/node_modules/axe-core/axe.min.js").read_text()
PHONE, DESKTOP = {"width": 360, "height": 640}, {"width": 1280, "height": 800}
LOOKS = [(size, scheme) for size in (PHONE, DESKTOP) for scheme in ("light", "dark")]


@pytest.fixture(params=LOOKS, ids=lambda look: f"{look[0]['width']}-{look[1]}")
def page(request, browser):
    size, scheme = request.param
    context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")
    yield context.new_page()
    context.close()


def violations(page):
    """What axe-core finds, a line each: rule, what is wrong, where."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run()")["violations"]
    return [f"{v['id']}: {v['help']}: {[node['target'] for node in v['nodes']]}" for v in found]


def ask(page, prompt):
    page.fill("#prompt", prompt)
    page.click("#ask")


def expect_state(page, state):
    expect(page.locator(".answer").last).to_have_attribute("data-state", state)


@pytest.fixture(scope="module")
def patient_relay(shared_sandbox):
    """It waits for as long as axe-core takes."""
    relay = RelayServer(shared_sandbox.url, GATEWAY_IDLE_TIMEOUT="60")
    yield relay
    relay.stop()


def test_the_page_in_its_states_violates_no_rule(page, patient_relay, sandbox, prompt):
    sandbox.script(f"{prompt} 1", ["It ", "is ", "here."])
    sandbox.script(f"{prompt} 3", ["One", " two"], gate=True)
    page.goto(patient_relay.url)
    expect(page.locator("#conversation-id")).not_to_have_value("")
    assert violations(page) == []
    ask(page, f"{prompt} 1")
    expect_state(page, "complete")
    expect(page.locator("#transcript-state")).to_have_attribute("data-state", "agrees")
    sandbox.fault("gateway", "malformed")
    ask(page, f"{prompt} 2")
    expect_state(page, "failed")
    assert violations(page) == []
    ask(page, f"{prompt} 3")
    expect(page.locator("#stop")).to_be_enabled()
    assert violations(page) == []
    page.click("#stop")
    expect_state(page, "stopped")
    assert violations(page) == []


@pytest.fixture(scope="module")
def keyed_relay(shared_sandbox):
    relay = RelayServer(shared_sandbox.url, ACCESS="keys", RELAY_API_KEYS=make_key("shop").entry)
    yield relay
    relay.stop()


def test_the_question_for_a_key_violates_no_rule(page, keyed_relay):
    page.goto(keyed_relay.url)
    expect(page.locator("#key-dialog")).to_be_visible()
    assert violations(page) == []
    page.fill("#key", "wrong")
    page.click("#key-form button")
    expect(page.locator("#key-note")).not_to_be_empty()
    assert violations(page) == []


def test_the_sandbox_pages_violate_no_rule(page, sandbox):
    page.goto(sandbox.url)
    expect(page.locator("h1")).to_be_visible()
    assert violations(page) == []
