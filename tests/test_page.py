"""The page in a real Chromium."""

import os
import re

import pytest
import requests
from playwright.sync_api import expect, sync_playwright

from .conftest import until

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, relay):
    """Opens the page in a context of its own; afterwards nothing may have been complained about in the console."""
    contexts, complaints = [], []

    def open_at(url=relay.url, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        expect(page.locator("#conversation-id")).not_to_have_value("")
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def page(open_page):
    return open_page()


def ask(page, prompt):
    page.fill("#prompt", prompt)
    page.click("#ask")


def shown(page):
    return page.locator(".answer").last


def test_tokens_appear_one_by_one_and_the_transcript_agrees(page, sandbox, prompt):
    tokens = ["Hel", "lo ", "<b>wörld</b> ", "👋 ", "done"]
    sandbox.script(prompt, tokens, gate=True)
    ask(page, prompt)
    for count in range(1, len(tokens) + 1):
        text = "".join(tokens[:count])
        expect(shown(page).locator(".answer-text")).to_have_text(text, use_inner_text=False)
        expect(page.locator("#transcript-text")).to_have_text(text)
        sandbox.receipt(prompt, count)
    expect(shown(page)).to_have_attribute("data-state", "complete")
    expect(page.locator("#transcript-state")).to_have_attribute("data-state", "agrees")
    conversation = page.input_value("#conversation-id")
    assert sandbox.text_of(conversation) == "".join(tokens)


def test_asking_on_sends_the_conversation_so_far(page, sandbox, prompt):
    sandbox.script(prompt, ["first"])
    sandbox.script(f"{prompt} again", ["second"])
    ask(page, prompt)
    expect(shown(page)).to_have_attribute("data-state", "complete")
    with page.expect_request("**/stream-llm") as asked:
        ask(page, f"{prompt} again")
    assert asked.value.post_data_json["messages"] == [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": "first"},
        {"role": "user", "content": f"{prompt} again"},
    ]
    expect(page.locator(".answer-text").last).to_have_text("second")
    expect(page.locator("#transcript-state")).to_have_attribute("data-state", "agrees")
    expect(page.locator("#transcript-text")).to_have_text("firstsecond")


def test_stop_stops(page, sandbox, prompt):
    sandbox.script(prompt, ["one ", "two ", "three "], gate=True)
    ask(page, prompt)
    expect(shown(page).locator(".answer-text")).to_have_text("one ")
    page.click("#stop")
    expect(shown(page)).to_have_attribute("data-state", "stopped")
    expect(shown(page).locator(".answer-note")).to_have_text("Stopped.")
    until(lambda: sandbox.calls()["gateway"]["abandoned"] == 1, "the turn is cancelled")
    expect(page.locator("#ask")).to_be_enabled()
    assert shown(page).locator(".answer-text").text_content() == "one "


def test_a_retry_is_told_in_words(page, sandbox, prompt):
    sandbox.script(prompt, ["at last"])
    sandbox.fault("gateway", "rate_limited", retry_after=2, prompt=prompt)
    ask(page, prompt)
    expect(shown(page).locator(".answer-note")).to_have_text(
        re.compile(r"busy \(rate limited\)\. Trying again in [12] s")
    )
    expect(shown(page)).to_have_attribute("data-state", "retrying")
    expect(shown(page).locator(".answer-text")).to_have_text("at last")
    expect(shown(page)).to_have_attribute("data-state", "complete")


def test_an_error_is_told_in_words(page, sandbox, prompt):
    sandbox.fault("gateway", "bad_request_400", prompt=prompt)
    ask(page, prompt)
    expect(shown(page)).to_have_attribute("data-state", "failed")
    expect(shown(page).locator(".answer-note")).to_contain_text("The gateway refused the request.")


def test_an_answer_that_breaks_off_keeps_its_text(page, sandbox, prompt):
    sandbox.script(prompt, ["one ", "two ", "three ", "four "])
    sandbox.fault("gateway", "cut", prompt=prompt)
    ask(page, prompt)
    expect(shown(page)).to_have_attribute("data-state", "failed")
    expect(shown(page).locator(".answer-text")).to_have_text("one two three ")
    expect(page.locator("#transcript-state")).to_have_attribute("data-state", "agrees")


def test_the_keyboard_is_enough(page, sandbox, prompt):
    sandbox.script(prompt, ["one ", "two "], gate=True)
    page.keyboard.type(prompt)
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("more")
    page.keyboard.press("Enter")
    expect(shown(page).locator(".answer-text")).to_have_text("one ")
    page.keyboard.press("Escape")
    expect(shown(page)).to_have_attribute("data-state", "stopped")
    expect(page.locator("#prompt")).to_be_focused()


def test_a_new_conversation_starts_over(page, sandbox, prompt):
    sandbox.script(prompt, ["first"])
    ask(page, prompt)
    expect(page.locator("#transcript-text")).to_have_text("first")
    before = page.input_value("#conversation-id")
    page.click("#new-conversation")
    expect(page.locator("#answers li")).to_have_count(0)
    expect(page.locator("#transcript-text")).to_have_text("")
    assert page.input_value("#conversation-id") != before
    with page.expect_request("**/stream-llm") as asked:
        ask(page, prompt)
    assert asked.value.post_data_json["prompt"] == prompt
    expect(page.locator("#transcript-text")).to_have_text("first")


def test_a_conversation_that_has_text_already_is_continued(page, relay, sandbox, prompt, conversation):
    sandbox.script(prompt, ["old "])
    relay.ask(prompt, conversation).finish()
    until(lambda: sandbox.text_of(conversation) == "old ", "the transcript")
    page.fill("#conversation-id", conversation)
    page.press("#conversation-id", "Tab")
    expect(page.locator("#transcript-text")).to_have_text("old ")
    ask(page, prompt)
    expect(page.locator("#transcript-text")).to_have_text("old old ")
    expect(page.locator("#transcript-state")).to_have_attribute("data-state", "agrees")


def test_without_a_sandbox_the_page_says_where_the_transcript_is(open_page, start_relay):
    page = open_page(start_relay(SANDBOX_URL="", DEFAULT_CONVERSATION_ID="c-77").url)
    expect(page.locator("#transcript-state")).to_contain_text("agent desktop, in conversation c-77")


def test_names_and_roles_for_those_who_do_not_see_it(page):
    expect(page.get_by_role("heading", name="Ask the gateway", level=1)).to_be_visible()
    expect(page.get_by_label("Your question")).to_be_visible()
    expect(page.get_by_label("Conversation", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    expect(page.get_by_role("region", name="Transcript, as the agent sees it").first).to_be_visible()
    assert page.locator("html").get_attribute("lang") == "en"


@pytest.mark.parametrize("width", [320, 768, 1440])
def test_no_width_scrolls_sideways(open_page, sandbox, prompt, width):
    page = open_page(viewport={"width": width, "height": 700})
    sandbox.script(prompt, ["long" * 200])
    ask(page, prompt)
    expect(shown(page)).to_have_attribute("data-state", "complete")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    heights = page.eval_on_selector_all("button, input", "all => all.map(e => e.getBoundingClientRect().height)")
    assert min(heights) >= 44


def test_dark_and_light(open_page):
    def luminance(scheme):
        page = open_page(color_scheme=scheme)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    assert luminance("dark") < 150
    assert luminance("light") > 600


def test_nothing_from_elsewhere_and_a_strict_policy(relay, sandbox):
    answer = requests.get(relay.url, timeout=10)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert f"connect-src 'self' {sandbox.url};" in policy
    assert "//" not in re.sub(r'xmlns="[^"]*"', "", answer.text)


STREAMS = {
    "one event": ("data: a\n\n", [["message", "a", ""]]),
    "two lines of data": ("data: a\ndata: b\n\n", [["message", "a\nb", ""]]),
    "CR": ("data: a\r\rdata: b\r\r", [["message", "a", ""], ["message", "b", ""]]),
    "CRLF": ("data: a\r\ndata: b\r\n\r\n", [["message", "a\nb", ""]]),
    "a byte order mark": ("\ufeffdata: a\n\n", [["message", "a", ""]]),
    "a comment": (": ping\n\ndata: a\n\n", [["message", "a", ""]]),
    "no space": ("data:a\n\n", [["message", "a", ""]]),
    "two spaces": ("data:  a\n\n", [["message", " a", ""]]),
    "a field without colon": ("data\n\n", [["message", "", ""]]),
    "empty data twice": ("data\ndata\n\n", [["message", "\n", ""]]),
    "no data": ("event: x\n\ndata: a\n\n", [["message", "a", ""]]),
    "a name": ("event: done\ndata: a\n\n", [["done", "a", ""]]),
    "an id that stays": ("id: 7\ndata: a\n\ndata: b\n\n", [["message", "a", "7"], ["message", "b", "7"]]),
    "an id that is emptied": ("id: 7\ndata: a\n\nid\ndata: b\n\n", [["message", "a", "7"], ["message", "b", ""]]),
    "an id with NUL": ("id: 7\0\ndata: a\n\n", [["message", "a", ""]]),
    "an unknown field": ("colour: red\ndata: a\n\n", [["message", "a", ""]]),
    "characters of several bytes": ("data: é👋\n\n", [["message", "é👋", ""]]),
    "no end": ("data: a\n\ndata: b\n", [["message", "a", ""]]),
}
PARSE = """async ([bytes, size]) => {
    const { EventParser } = await import("/page/sse.js");
    const parser = new EventParser();
    const found = [];
    for (let at = 0; at < bytes.length; at += size)
        found.push(...parser.feed(new Uint8Array(bytes.slice(at, at + size))));
    return found.map(({ event, data, lastEventId }) => [event, data, lastEventId]);
}"""


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_the_pages_parser_keeps_to_the_standard(page, size):
    for name, (stream, events) in STREAMS.items():
        assert page.evaluate(PARSE, [list(stream.encode()), size]) == events, name


def test_the_pages_parser_reads_the_retry_time(page):
    script = """async () => {
        const { EventParser } = await import("/page/sse.js");
        const parser = new EventParser();
        parser.feed(new TextEncoder().encode("retry: 1000\\n\\nretry: 2x\\n\\n"));
        return parser.retry;
    }"""
    assert page.evaluate(script) == 1000
