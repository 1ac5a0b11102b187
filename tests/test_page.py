"""The page in a real Chromium."""

import json
import os
import re
import signal
from urllib.parse import quote

import pytest
import requests
import websocket
from playwright.sync_api import expect

from server.access.keys import make_key

from .conftest import until
from .proxy import Proxy

LOST = "Failed to load resource"  # what Chromium's console says of a connection that was cut or refused


@pytest.fixture
def proxy(lasting_relay):
    proxy = Proxy(lasting_relay.url)
    yield proxy
    proxy.close()


@pytest.fixture
def open_page(browser, relay):
    """Opens the page in a context of its own; afterwards nothing may have been complained about in the console, but
    for what the test has set as `open_page.expected`."""
    contexts, complaints = [], []

    def open_at(url=relay.url, ready=None, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        context.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        context.on("weberror", lambda error: complaints.append(str(error.error)))
        return open_window(context, url, ready)

    open_at.expected = None
    yield open_at
    for context in contexts:
        context.close()
    assert [text for text in complaints if open_at.expected is None or open_at.expected not in text] == []


def open_window(context, url, ready=None):
    """`ready` is what shows that the page is there, in place of a conversation's id."""
    page = context.new_page()
    page.goto(url)
    if ready is None:
        expect(page.locator("#conversation-id")).not_to_have_value("")
    else:
        expect(page.locator(ready)).to_be_visible()
    return page


@pytest.fixture
def page(open_page):
    return open_page()


def ask(page, prompt):
    page.fill("#prompt", prompt)
    page.click("#ask")


def shown(page):
    return page.locator(".answer").last


def expect_text(page, text):
    """The last answer shows exactly this."""
    expect(shown(page).locator(".answer-text")).to_have_text(text, use_inner_text=False)


def expect_state(page, state):
    expect(shown(page)).to_have_attribute("data-state", state)


def expect_transcript(page, state):
    expect(page.locator("#transcript-state")).to_have_attribute("data-state", state)


def until_page(page, condition):
    """Waits for what this test's own handlers are told, which needs the page's events to be let through."""
    for _ in range(200):
        if condition():
            return
        page.wait_for_timeout(25)
    raise AssertionError("the condition did not come true")


def turns_of(relay):
    """How many turns its worker runs."""
    return requests.get(f"{relay.url}/healthz", timeout=10).json()["turns"]


def is_question_url(url):
    return url.endswith("/streams") and "/conversations/" not in url


def is_question(request):
    return request.method == "POST" and request.url.endswith("/streams")


def test_tokens_appear_one_by_one_and_the_transcript_agrees(page, sandbox, prompt):
    tokens = ["Hel", "lo ", "<b>wörld</b> ", "👋 ", "done"]
    sandbox.script(prompt, tokens, gate=True)
    ask(page, prompt)
    for count in range(1, len(tokens) + 1):
        text = "".join(tokens[:count])
        expect_text(page, text)
        expect(page.locator("#transcript-text")).to_have_text(text)
        sandbox.receipt(prompt, count)
    expect_state(page, "complete")
    expect_transcript(page, "agrees")
    conversation = page.input_value("#conversation-id")
    assert sandbox.text_of(conversation) == "".join(tokens)


def test_asking_on_sends_the_conversation_so_far(page, sandbox, prompt):
    sandbox.script(prompt, ["first"])
    sandbox.script(f"{prompt} again", ["second"])
    ask(page, prompt)
    expect_state(page, "complete")
    with page.expect_request(is_question) as asked:
        ask(page, f"{prompt} again")
    assert asked.value.post_data_json["messages"] == [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": "first"},
        {"role": "user", "content": f"{prompt} again"},
    ]
    expect(page.locator(".answer-text").last).to_have_text("second")
    expect_transcript(page, "agrees")
    expect(page.locator("#transcript-text")).to_have_text("firstsecond")


def test_stop_ends_the_answer_at_once_not_after_the_grace(open_page, lasting_relay, sandbox, prompt):
    page = open_page(lasting_relay.url)
    sandbox.script(prompt, ["one ", "two ", "three "], gate=True)
    ask(page, prompt)
    expect_text(page, "one ")
    page.click("#stop")
    expect_state(page, "stopped")
    expect(shown(page).locator(".answer-note")).to_have_text("Stopped.")
    until(lambda: sandbox.calls()["gateway"]["abandoned"] == 1, "the turn is cancelled", patience=5)
    expect(page.locator("#ask")).to_be_enabled()
    expect_text(page, "one ")
    expect_transcript(page, "agrees")


def test_stop_before_there_is_a_stream_stops_it_once_there_is_one(open_page, lasting_relay, sandbox, prompt):
    page = open_page(lasting_relay.url)
    sandbox.script(prompt, ["one ", "two "], gate=True)
    held = []

    def hold(route):
        held.append(route)

    page.route(is_question_url, hold)
    ask(page, prompt)
    page.click("#stop")
    expect_state(page, "stopping")
    until_page(page, lambda: held)
    held[0].continue_()
    expect_state(page, "stopped")
    until(lambda: not turns_of(lasting_relay), "the turn is cancelled", patience=5)


def test_a_retry_is_told_in_words(page, sandbox, prompt):
    sandbox.script(prompt, ["at last"])
    sandbox.fault("gateway", "rate_limited", retry_after=2, prompt=prompt)
    ask(page, prompt)
    expect(shown(page).locator(".answer-note")).to_have_text(
        re.compile(r"busy \(rate limited\)\. Trying again in [12] s")
    )
    expect_state(page, "retrying")
    expect_text(page, "at last")
    expect_state(page, "complete")


def test_an_error_is_told_in_words(page, sandbox, prompt):
    sandbox.fault("gateway", "bad_request_400", prompt=prompt)
    ask(page, prompt)
    expect_state(page, "failed")
    expect(shown(page).locator(".answer-note")).to_contain_text("The gateway refused the request.")


def test_an_answer_that_breaks_off_keeps_its_text(page, sandbox, prompt):
    sandbox.script(prompt, ["one ", "two ", "three ", "four "])
    sandbox.fault("gateway", "cut", prompt=prompt)
    ask(page, prompt)
    expect_state(page, "failed")
    expect_text(page, "one two three ")
    expect_transcript(page, "agrees")


def test_the_keyboard_is_enough(page, sandbox, prompt):
    sandbox.script(prompt, ["one ", "two "], gate=True)
    page.keyboard.type(prompt)
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("more")
    page.keyboard.press("Enter")
    expect_text(page, "one ")
    page.keyboard.press("Escape")
    expect_state(page, "stopped")
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
    with page.expect_request(is_question) as asked:
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
    expect_transcript(page, "agrees")


def test_without_a_sandbox_the_page_says_where_the_transcript_is(start_relay, open_page):
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
    expect_state(page, "complete")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    heights = page.eval_on_selector_all(
        ":is(header, main) :is(button, input)", "all => all.map(e => e.getBoundingClientRect().height)"
    )
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


# Coming back.


@pytest.mark.parametrize("seen", [1, 3])
def test_a_reload_in_mid_answer_goes_on_with_every_token_once(open_page, lasting_relay, sandbox, prompt, seen):
    page = open_page(lasting_relay.url)
    tokens = [f"{number} " for number in range(1, 6)]
    sandbox.script(prompt, tokens, gate=True)
    ask(page, prompt)
    sandbox.receipt(prompt, seen - 1)
    expect_text(page, "".join(tokens[:seen]))
    conversation = page.input_value("#conversation-id")
    page.reload()
    expect_text(page, "".join(tokens[:seen]))
    assert page.input_value("#conversation-id") == conversation
    expect(page.locator(".question")).to_have_text(prompt)
    expect(page.locator("#stop")).to_be_enabled()
    sandbox.receipt(prompt, 5)
    expect_state(page, "complete")
    expect_text(page, "".join(tokens))
    expect_transcript(page, "agrees")
    assert sandbox.gateway_calls(prompt) == 1


def test_a_conversation_opened_again_shows_its_answers_and_can_be_asked_on(open_page, relay, sandbox, prompt):
    page = open_page()
    sandbox.script(f"{prompt} one", ["first "])
    sandbox.script(f"{prompt} two", ["half ", "of ", "it ", "more "])
    sandbox.fault("gateway", "cut", prompt=f"{prompt} two")
    sandbox.script(f"{prompt} three", ["third "])
    ask(page, f"{prompt} one")
    expect_state(page, "complete")
    ask(page, f"{prompt} two")
    expect_state(page, "failed")
    error = shown(page).locator(".answer-note").text_content()
    page.reload()
    expect(page.locator(".question")).to_have_text([f"{prompt} one", f"{prompt} two"])
    expect(page.locator(".answer-text")).to_have_text(["first ", "half of it "], use_inner_text=False)
    expect_state(page, "failed")
    expect(shown(page).locator(".answer-note")).to_have_text(error)
    expect_transcript(page, "agrees")
    with page.expect_request(is_question) as asked:
        ask(page, f"{prompt} three")
    assert asked.value.post_data_json["messages"] == [
        {"role": "user", "content": f"{prompt} one"},
        {"role": "assistant", "content": "first "},
        {"role": "user", "content": f"{prompt} three"},
    ]
    expect_state(page, "complete")
    expect_transcript(page, "agrees")


def test_a_conversation_of_any_name_is_found_again(open_page, relay, sandbox, prompt, conversation):
    page = open_page(f"{relay.url}/?conversation={quote(f'{conversation}/ü & #1', safe='')}")
    sandbox.script(prompt, ["one "])
    ask(page, prompt)
    expect_state(page, "complete")
    page.reload()
    expect(page.locator("#conversation-id")).to_have_value(f"{conversation}/ü & #1")
    expect_text(page, "one ")
    expect_transcript(page, "agrees")


def test_a_second_window_watches_the_same_answer_live(open_page, lasting_relay, sandbox, prompt):
    page = open_page(lasting_relay.url)
    sandbox.script(prompt, ["one ", "two ", "three "], gate=True)
    ask(page, prompt)
    expect_text(page, "one ")
    beside = open_window(page.context, page.url)
    elsewhere = open_page(page.url)
    for count, text in ((1, "one two "), (3, "one two three ")):
        for window in (beside, elsewhere):
            expect(shown(window)).to_be_visible()
        sandbox.receipt(prompt, count)
        for window in (page, beside, elsewhere):
            expect_text(window, text)
    for window in (page, beside, elsewhere):
        expect_state(window, "complete")
        expect_transcript(window, "agrees")
    expect(beside.locator(".question")).to_have_text(prompt)
    expect(elsewhere.locator(".question")).to_have_text("Asked elsewhere.")


def test_an_answer_begun_elsewhere_is_noticed_and_can_be_stopped_from_here(
    open_page, lasting_relay, sandbox, prompt, conversation
):
    page = open_page(f"{lasting_relay.url}/?conversation={conversation}")
    sandbox.script(prompt, ["one ", "two "], gate=True)
    stream = lasting_relay.begin(prompt, conversation)
    expect(page.locator(".answer-text")).to_have_text("one ", use_inner_text=False, timeout=4000)
    page.click("#stop")
    expect_state(page, "stopped")
    assert lasting_relay.state(stream)["status"] == "cancelled"


def test_another_window_notices_a_question_and_knows_it(open_page, lasting_relay, sandbox, prompt):
    page = open_page(lasting_relay.url)
    beside = open_window(page.context, page.url)
    sandbox.script(prompt, ["one ", "two "], gate=True)
    ask(page, prompt)
    expect(beside.locator(".question")).to_have_text(prompt)
    expect_text(beside, "one ")
    sandbox.receipt(prompt, 2)
    expect_state(beside, "complete")


def test_who_does_not_see_the_page_asks_for_nothing(open_page, lasting_relay, sandbox, prompt, conversation):
    page = open_page(f"{lasting_relay.url}/?conversation={conversation}")
    page.evaluate("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
    page.wait_for_timeout(200)  # for a look that is on its way
    looks = []
    page.on("request", lambda request: looks.append(request.url))
    sandbox.script(prompt, ["one "])
    lasting_relay.begin(prompt, conversation)
    page.wait_for_timeout(2500)
    assert looks == []
    page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    expect_text(page, "one ")


# Lost connections.


def test_reconnecting_is_told_once_and_then_everything_arrives_once(open_page, lasting_relay, proxy, sandbox, prompt):
    open_page.expected = LOST
    page = open_page(proxy.url)
    page.evaluate("""() => {
        window.heard = [];
        const said = document.getElementById("said");
        new MutationObserver(() => window.heard.push(said.textContent)).observe(said, { childList: true });
    }""")
    tokens = [f"{number} " for number in range(1, 5)]
    sandbox.script(prompt, tokens, gate=True)
    ask(page, prompt)
    for count in range(1, len(tokens)):
        expect_text(page, "".join(tokens[:count]))
        proxy.cut()
        expect_state(page, "reconnecting")
        expect(shown(page).locator(".answer-note")).to_have_text("Reconnecting…")
        expect_state(page, "streaming")
        expect(shown(page).locator(".answer-note")).to_have_text("")
        sandbox.receipt(prompt, count)
    expect_state(page, "complete")
    expect_text(page, "".join(tokens))
    expect_transcript(page, "agrees")
    assert page.evaluate("window.heard").count("Reconnecting…") == len(tokens) - 1


@pytest.mark.parametrize("budget", [250, 433, 700, 1001])
def test_cut_anywhere_in_the_bytes_everything_arrives_once(open_page, lasting_relay, proxy, sandbox, prompt, budget):
    open_page.expected = LOST
    page = open_page(proxy.url)
    tokens = [f"<{number}é> " for number in range(1, 31)]
    sandbox.script(prompt, tokens)
    proxy.budget = budget
    ask(page, prompt)
    until_page(page, lambda: len(proxy.asked) > 1)
    proxy.budget = None
    expect(shown(page)).to_have_attribute("data-state", "complete", timeout=20000)
    expect_text(page, "".join(tokens))
    expect_transcript(page, "agrees")


def test_a_worker_that_is_replaced_in_mid_answer_loses_nothing(start_relay, open_page, sandbox, prompt):
    open_page.expected = LOST
    relay = start_relay(DISCONNECT_GRACE="30", GATEWAY_IDLE_TIMEOUT="60")
    page = open_page(relay.url)
    tokens = [f"{number} " for number in range(1, 6)]
    sandbox.script(prompt, tokens, gate=True)
    ask(page, prompt)
    sandbox.receipt(prompt, 1)
    expect_text(page, "1 2 ")
    old = relay.workers
    relay.process.process.send_signal(signal.SIGHUP)
    until(lambda: set(relay.workers) - set(old), "a new worker")
    for count in range(3, 6):
        sandbox.receipt(prompt, count - 1)
        expect_text(page, "".join(tokens[:count]))
    sandbox.receipt(prompt, 5)
    expect_state(page, "complete")
    expect_transcript(page, "agrees")
    until(lambda: not set(relay.workers) & set(old), "the old worker is gone")
    assert sandbox.gateway_calls(prompt) == 1


def test_a_question_goes_to_the_new_worker_while_the_old_one_still_answers(start_relay, open_page, sandbox, prompt):
    open_page.expected = LOST
    relay = start_relay(DISCONNECT_GRACE="30", GATEWAY_IDLE_TIMEOUT="60")
    page = open_page(relay.url)
    sandbox.script(f"{prompt} long", ["a ", "b "], gate=True)
    sandbox.script(f"{prompt} short", ["c "])
    long = relay.ask(f"{prompt} long")
    assert long.next_token() == "a "
    old = relay.workers
    relay.process.process.send_signal(signal.SIGHUP)
    until(lambda: set(relay.workers) - set(old), "a new worker")
    ask(page, f"{prompt} short")
    expect_state(page, "complete")
    expect_text(page, "c ")
    sandbox.receipt(f"{prompt} long", 2)
    assert long.finish().done["status"] == "complete"


def test_a_worker_that_is_killed_ends_the_answer_in_words(start_relay, open_page, sandbox, prompt):
    open_page.expected = LOST
    relay = start_relay(DISCONNECT_GRACE="30", GATEWAY_IDLE_TIMEOUT="60")
    page = open_page(relay.url)
    sandbox.script(prompt, ["one ", "two "], gate=True)
    ask(page, prompt)
    expect_text(page, "one ")
    page.wait_for_timeout(500)  # until the token is in the store
    os.kill(relay.workers[0], signal.SIGKILL)
    expect(shown(page)).to_have_attribute("data-state", "interrupted", timeout=15000)
    expect(shown(page).locator(".answer-note")).to_have_text("The server had to stop. Ask again.")
    expect_text(page, "one ")


BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def test_after_a_busy_while_the_page_goes_on_behind_the_last_event(open_page, lasting_relay, proxy, sandbox, prompt):
    open_page.expected = LOST
    page = open_page(proxy.url)
    cursors = []
    page.on("request", lambda request: cursors.append(request.headers.get("last-event-id")))
    sandbox.script(prompt, ["one ", "two ", "three "], gate=True)
    ask(page, prompt)
    sandbox.receipt(prompt, 1)
    expect_text(page, "one two ")
    proxy.instead = BUSY
    proxy.cut()
    until_page(page, lambda: len(proxy.asked) > 2)
    expect_state(page, "reconnecting")
    assert "2" in cursors
    proxy.instead = None
    sandbox.receipt(prompt, 3)
    expect_state(page, "complete")
    expect_text(page, "one two three ")


def test_an_answer_that_ended_meanwhile_is_shown_whole(open_page, lasting_relay, proxy, sandbox, prompt):
    open_page.expected = LOST
    page = open_page(proxy.url)
    sandbox.script(prompt, ["one ", "two ", "three "], gate=True)
    ask(page, prompt)
    expect_text(page, "one ")
    proxy.instead = BUSY
    proxy.cut()
    sandbox.receipt(prompt, 3)
    expect_state(page, "complete")
    expect_text(page, "one two three ")


def test_an_answer_that_is_no_longer_kept_is_said_to_be_gone(open_page, lasting_relay, proxy, sandbox, prompt):
    open_page.expected = LOST
    page = open_page(proxy.url)
    sandbox.script(prompt, ["one ", "two "], gate=True)
    ask(page, prompt)
    expect_text(page, "one ")
    page.route(re.compile("/streams/"), lambda route: route.fulfill(status=404, json={"error": "no", "code": "x"}))
    proxy.cut()
    expect_state(page, "interrupted")
    expect(shown(page).locator(".answer-note")).to_have_text("The server no longer has this answer. Ask again.")
    expect_text(page, "one ")
    expect(page.locator("#ask")).to_be_enabled()


def test_what_is_sent_again_is_shown_once(page, prompt):
    events = ["1|one ", "2|two ", "1|one ", "2|two ", "3|three "]
    lines = [f'id: {number}\ndata: {{"token": "{token}"}}\n\n' for number, token in (e.split("|") for e in events)]
    body = "".join(lines) + 'id: 4\nevent: done\ndata: {"status": "complete", "finish_reason": "stop"}\n\n'
    page.route(re.compile("/streams/"), lambda route: route.fulfill(content_type="text/event-stream", body=body))
    ask(page, prompt)
    expect_state(page, "complete")
    expect_text(page, "one two three ")


def test_a_question_whose_receipt_is_lost_is_asked_once(open_page, lasting_relay, proxy, sandbox, prompt):
    open_page.expected = LOST
    page = open_page(proxy.url)
    sandbox.script(prompt, ["one "])
    proxy.swallow = 2
    ask(page, prompt)
    expect_state(page, "complete")
    expect_text(page, "one ")
    assert sandbox.gateway_calls(prompt) == 1
    expect(page.locator("#answers li")).to_have_count(1)


def test_a_busy_server_is_told_in_words_and_asked_again(open_page, relay, sandbox, prompt):
    open_page.expected = LOST
    page = open_page()
    sandbox.script(prompt, ["one "])
    busy = {"status": 503, "json": {"error": "The server is busy.", "code": "too_many_turns"}}
    page.route(is_question_url, lambda route: route.fulfill(headers={"Retry-After": "1"}, **busy), times=1)
    ask(page, prompt)
    expect_state(page, "retrying")
    expect(shown(page).locator(".answer-note")).to_have_text(re.compile(r"The server is busy\. Trying again in [12] s"))
    expect_state(page, "complete")


def test_a_refused_question_is_told_in_words_and_the_next_is_asked(open_page, relay, sandbox, prompt):
    open_page.expected = LOST
    page = open_page()
    sandbox.script(prompt, ["one "])
    ask(page, "x" * 200_001)
    expect_state(page, "failed")
    expect(shown(page).locator(".answer-note")).to_contain_text("at most 200000 are taken. Shorten it.")
    ask(page, prompt)
    expect_state(page, "complete")
    expect_transcript(page, "agrees")


# Asking on, and the transcript beside it.


def test_a_long_conversation_goes_on_without_its_oldest_part(page, sandbox, prompt):
    for number in range(3):
        sandbox.script(f"{prompt} {number}", [f"{number}" * 45_000])
        with page.expect_request(is_question) as asked:
            ask(page, f"{prompt} {number}")
        expect_state(page, "complete")
    sandbox.script(f"{prompt} last", ["done"])
    with page.expect_request(is_question) as asked:
        ask(page, f"{prompt} last")
    expect_state(page, "complete")
    contents = [message["content"] for message in asked.value.post_data_json["messages"]]
    assert contents[0::2] == [f"{prompt} 1", f"{prompt} 2", f"{prompt} last"]
    assert sum(map(len, contents)) <= 100_000


def test_a_conversation_of_many_turns_sends_a_hundred_messages_at_most(page, prompt):
    body = page.evaluate("""async () => {
        const { Conversation } = await import("/page/conversation.js");
        const quiet = { changed() {}, finished() {}, trouble() {} };
        const conversation = new Conversation("none", document.createElement("ol"), quiet);
        const sent = new Promise((resolve) => {
            window.fetch = async (address, { body } = {}) => {
                if (body) resolve(JSON.parse(body));
                return new Response("{}", { status: 400 });
            };
        });
        await new Promise((resolve) => setTimeout(resolve, 200));
        for (let number = 0; number < 80; number += 1) {
            conversation.answers.push({ question: `q${number}`, text: "a", state: "complete", hasEnded: true });
        }
        conversation.ask("new");
        return sent;
    }""")
    assert len(body["messages"]) == 99
    assert body["messages"][0] == {"role": "user", "content": "q31"}
    assert body["messages"][-1] == {"role": "user", "content": "new"}


def test_questions_are_kept_for_the_newest_streams(page):
    kept = page.evaluate("""async () => {
        const { keepQuestion, questionOf } = await import("/page/questions.js");
        for (let number = 0; number < 250; number += 1) keepQuestion(`s${number}`, `q${number}`);
        const few = ["s49", "s50", "s249"].map(questionOf);
        keepQuestion("big1", "x".repeat(3_000_000));
        keepQuestion("big2", "y".repeat(3_000_000)); // both are more than a browser keeps
        return [...few, questionOf("big1"), questionOf("big2").length];
    }""")
    assert kept == [None, "q50", "q249", None, 3_000_000]


def test_the_transcript_does_not_differ_while_a_second_answer_comes(page, sandbox, prompt):
    sandbox.script(f"{prompt} one", ["first "])
    sandbox.script(f"{prompt} two", ["a ", "b ", "c "], gate=True)
    page.evaluate("""() => {
        window.states = [];
        const state = document.getElementById("transcript-state");
        new MutationObserver(() => window.states.push(state.dataset.state)).observe(state, { attributes: true });
    }""")
    ask(page, f"{prompt} one")
    expect_transcript(page, "agrees")
    ask(page, f"{prompt} two")
    for count in range(1, 3):
        expect(page.locator("#transcript-text")).to_have_text("first " + "a b c "[: 2 * count], use_inner_text=False)
        expect_transcript(page, "off")
        sandbox.receipt(f"{prompt} two", count)
    expect_transcript(page, "agrees")
    assert "differs" not in page.evaluate("window.states")


def test_a_transcript_that_differs_is_said_to(open_page, lasting_relay, sandbox, prompt):
    page = open_page(lasting_relay.url)
    sandbox.script(prompt, ["one ", "two ", "three "], gate=True)
    ask(page, prompt)
    expect(page.locator("#transcript-text")).to_have_text("one ", use_inner_text=False)
    write_into_transcript(sandbox, page.input_value("#conversation-id"), "something else")
    sandbox.receipt(prompt, 1)
    expect_transcript(page, "differs")
    page.click("#stop")
    expect_state(page, "stopped")
    expect_transcript(page, "differs")


def write_into_transcript(sandbox, conversation, text):
    token = requests.get(f"{sandbox.url}/sandbox/tokens", timeout=10).json()[-1]
    address = sandbox.url.replace("http", "ws", 1) + f"/v2/conversations/websockets?access_token={token}"
    link = websocket.create_connection(address)
    message = {"conversationId": conversation, "type": "message", "text": text, "role": "agent"}
    link.send(json.dumps(message))
    until(lambda: text in sandbox.text_of(conversation), "the text is there")
    link.close()


# What becomes of an answer on its way into the transcript.


def tell_deliveries(page, *deliveries):
    """What each look at a stream that has ended is told, in turn; the last one stays."""
    left = list(deliveries)

    def tell(route):
        if "json" not in route.request.headers["accept"]:
            route.fallback()
            return
        response = route.fetch()
        state = response.json()
        if state["status"] != "running":
            state["transcript"] = left.pop(0) if len(left) > 1 else left[0]
        route.fulfill(response=response, json=state)

    page.route(re.compile("/streams/[^/]+$"), tell)


def expect_delivery(page, words):
    expect(shown(page).locator(".answer-delivery")).to_have_text(words, timeout=20_000)


PENDING = {"state": "pending", "cursor": 0}
PARKED = {"state": "parked", "cursor": 0, "reason": f"The platform refused it: {'n' * 200}."}
DELIVERED = {"state": "delivered", "cursor": 1}


def test_an_answer_says_that_it_is_in_the_transcript(page, sandbox, prompt):
    sandbox.script(prompt, ["one "])
    ask(page, prompt)
    expect_delivery(page, "In the transcript.")
    page.reload()
    expect_delivery(page, "In the transcript.")


def test_an_answer_that_is_on_its_way_says_so_and_then_that_it_is_there(page, sandbox, prompt):
    sandbox.script(prompt, ["one "])
    tell_deliveries(page, PENDING, PENDING, DELIVERED)
    ask(page, prompt)
    expect_delivery(page, "On its way into the transcript…")
    expect_delivery(page, "In the transcript.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_answer_that_is_held_back_says_why_on_a_narrow_screen_too(open_page, sandbox, prompt, scheme):
    page = open_page(viewport={"width": 320, "height": 700}, color_scheme=scheme)
    sandbox.script(prompt, ["one "])
    tell_deliveries(page, PENDING, PARKED, PARKED, DELIVERED)
    ask(page, prompt)
    expect_delivery(page, f"Not in the transcript yet. {PARKED['reason']}")
    expect(page.locator("#said")).to_have_text(f"Not in the transcript yet. {PARKED['reason']}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert contrast(shown(page).locator(".answer-delivery")) >= 4.5  # WCAG 2.2, 1.4.3
    expect_delivery(page, "In the transcript.")
    expect(page.locator("#said")).to_have_text("In the transcript.")
    assert contrast(shown(page).locator(".answer-delivery")) >= 4.5


def contrast(locator):
    """Of the text with the card behind it, as WCAG 2.2 counts."""
    colours = locator.evaluate("e => [getComputedStyle(e).color, getComputedStyle(e.parentElement).backgroundColor]")

    def luminance(colour):
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)


def test_without_a_transcript_nothing_is_said_of_it(start_relay, open_page, sandbox, prompt):
    page = open_page(start_relay(TRANSCRIPT="off").url)
    sandbox.script(prompt, ["one "])
    ask(page, prompt)
    expect_state(page, "complete")
    with page.expect_response(re.compile("/streams/[^/]+$")):
        page.reload()
    expect_state(page, "complete")
    expect(shown(page).locator(".answer-delivery")).to_be_hidden()


def test_the_page_looks_less_and_less_often_at_what_is_held_up_and_not_for_ever(page):
    pauses, looks, told = page.evaluate("""async () => {
        const { Deliveries } = await import("/page/deliveries.js");
        const pauses = [], looks = [], told = [];
        const answers = ["a", "b", "c"].map((url) => ({
            url, hasEnded: true, isSettled: false,
            set delivery({ state }) { [this.isSettled, this.state] = [state === "delivered", state]; },
            notFollowed() { told.push([url, this.state]); },
        }));
        const wait = window.setTimeout;
        window.setTimeout = (go, milliseconds) => { pauses.push(milliseconds / 1000); wait(go, 0); };
        window.fetch = async ({ pathname }) => {
            const url = pathname.slice(1);
            looks.push(url);
            return Response.json({ transcript: { state: url === "a" ? "delivered" : "pending" } });
        };
        new Deliveries(() => answers).follow();
        while (told.length < 2) await new Promise((resolve) => wait(resolve, 5));
        return [pauses, looks, told];
    }""")
    assert looks == ["a", *["b"] * 25]
    assert told == [["b", "pending"], ["c", "pending"]]
    assert pauses[0] <= 0.5
    assert 7.5 <= pauses[-1] <= 15
    assert 120 < sum(pauses) < 400


# The conversation's name, the focus.


def test_the_same_conversation_with_a_space_behind_stays(page, sandbox, prompt):
    sandbox.script(prompt, ["first "])
    ask(page, prompt)
    expect_transcript(page, "agrees")
    conversation = page.input_value("#conversation-id")
    page.fill("#conversation-id", f"{conversation} ")
    page.press("#conversation-id", "Tab")
    assert page.input_value("#conversation-id") == conversation
    expect(page.locator("#answers li")).to_have_count(1)
    expect_transcript(page, "agrees")


def test_another_conversation_leaves_the_focus_where_it_goes(page, conversation):
    page.fill("#conversation-id", conversation)
    page.press("#conversation-id", "Tab")
    expect(page.locator("#new-conversation")).to_be_focused()
    assert page.url.endswith(f"?conversation={conversation}")


def test_an_answer_that_ends_leaves_the_focus_to_who_is_elsewhere(open_page, lasting_relay, sandbox, prompt):
    page = open_page(lasting_relay.url)
    sandbox.script(prompt, ["one ", "two "], gate=True)
    ask(page, prompt)
    expect_text(page, "one ")
    page.focus("#transcript-text")
    sandbox.receipt(prompt, 2)
    expect_state(page, "complete")
    expect(page.locator("#transcript-text")).to_be_focused()


def test_an_answer_that_ends_takes_the_focus_from_a_button_that_goes_out_of_use(
    open_page, lasting_relay, sandbox, prompt
):
    page = open_page(lasting_relay.url)
    sandbox.script(prompt, ["one ", "two "], gate=True)
    ask(page, prompt)
    expect_text(page, "one ")
    page.focus("#stop")
    page.keyboard.press("Enter")
    expect_state(page, "stopped")
    expect(page.locator("#prompt")).to_be_focused()


def test_on_a_narrow_screen_the_answer_is_followed_and_the_question_stays_in_reach(
    open_page, lasting_relay, sandbox, prompt
):
    page = open_page(lasting_relay.url, viewport={"width": 380, "height": 700})
    words = [f"word{number} " for number in range(400)]
    sandbox.script(prompt, words, gate=True)
    ask(page, prompt)
    for count in (150, 300, 399):
        sandbox.receipt(prompt, count)
        expect_text(page, "".join(words[: count + 1]))
        page.wait_for_timeout(50)  # a frame
        answer = shown(page).bounding_box()
        form = page.locator("#question").bounding_box()
        assert form["y"] + form["height"] <= 700.5
        assert 0 <= form["y"] - (answer["y"] + answer["height"]) < 60
    page.evaluate("window.scrollTo(0, 0)")
    sandbox.receipt(prompt, 400)
    expect_state(page, "complete")
    assert page.evaluate("window.scrollY") == 0  # a reader who has gone up stays there


@pytest.fixture
def guarded(start_relay):
    """A relay that asks for keys, and such a key. Its tickets are good for less than an answer takes."""
    fresh = make_key("ann")
    relay = start_relay(
        ACCESS="keys",
        RELAY_API_KEYS=fresh.entry,
        TICKET_SECONDS="2",
        DISCONNECT_GRACE="60",
        GATEWAY_IDLE_TIMEOUT="60",
    )
    return relay, fresh.key


def give(page, key):
    page.fill("#key", key)
    page.press("#key", "Enter")


def open_guarded(open_page, relay, key):
    """Opens the page, which asks for the key before anything else."""
    page = open_page(relay.url, ready="#key-dialog")
    expect(page.locator("#key")).to_be_focused()
    give(page, key)
    expect(page.locator("#key-dialog")).to_be_hidden()
    expect(page.locator("#conversation-id")).not_to_have_value("")
    return page


def test_where_keys_are_asked_for_the_page_asks_once_and_keeps_none(guarded, open_page, sandbox, prompt):
    relay, key = guarded
    sandbox.script(prompt, ["one ", "two "])
    page = open_guarded(open_page, relay, key)
    ask(page, prompt)
    expect_text(page, "one two ")
    expect_transcript(page, "agrees")
    ask(page, prompt)
    expect(page.locator(".answer")).to_have_count(2)
    expect_state(page, "complete")
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
    assert key not in kept
    page.reload()
    expect(page.locator("#key-dialog")).to_be_visible()


def test_a_key_that_is_not_taken_is_asked_for_again(guarded, open_page, sandbox, prompt):
    relay, key = guarded
    sandbox.script(prompt, ["one "])
    open_page.expected = LOST
    page = open_page(relay.url, ready="#key-dialog")
    give(page, "wrong")
    expect(page.locator("#key-note")).to_have_text("The server does not take this key.")
    page.press("#key", "Escape")
    give(page, key)
    expect(page.locator("#key-dialog")).to_be_hidden()
    ask(page, prompt)
    expect_text(page, "one ")


def test_an_answer_goes_on_after_a_lost_connection_when_its_first_ticket_has_ended(guarded, open_page, sandbox, prompt):
    relay, key = guarded
    sandbox.script(prompt, ["one ", "two ", "three "], gate=True)
    proxy = Proxy(relay.url)
    try:
        open_page.expected = LOST
        page = open_guarded(open_page, proxy, key)
        ask(page, prompt)
        expect_text(page, "one ")
        page.wait_for_timeout(2500)
        proxy.cut()
        sandbox.receipt(prompt, 2)
        expect_text(page, "one two three ")
        sandbox.receipt(prompt, 3)
        expect_state(page, "complete")
    finally:
        proxy.close()


def test_stop_works_with_a_key_when_the_first_ticket_has_ended(guarded, open_page, sandbox, prompt):
    relay, key = guarded
    sandbox.script(prompt, ["one ", "two "], gate=True)
    page = open_guarded(open_page, relay, key)
    ask(page, prompt)
    expect_text(page, "one ")
    page.wait_for_timeout(2500)
    page.click("#stop")
    expect_state(page, "stopped")
