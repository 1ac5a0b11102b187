"""The example: a shop with logins, a database and pages of its own, whose customers ask about their orders."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from playwright.sync_api import expect

from .conftest import ROOT, Answer, RelayServer, until

SHOP = ROOT / "examples/shop"
PASSWORD = "correct horse"


class Shop(RelayServer):
    """The shop as its README starts it."""

    app = ("--bind", "127.0.0.1:0", "--chdir", str(SHOP))
    config = SHOP / "gunicorn.conf.py"

    def __init__(self, sandbox_url, folder, **settings):
        own = {
            "ACCESS": "",
            "SHOP_SECRET_KEY": "a secret of this test",
            "SHOP_DATABASE": f"sqlite:///{folder}/shop.db",
            "GATEWAY_IDLE_TIMEOUT": "60",
        }
        environment = os.environ | own | {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "models.py"], cwd=SHOP, env=environment, check=True, timeout=60)
        super().__init__(sandbox_url, **own | settings)

    def _answers(self):
        assert self.process.process.poll() is None, self.process.output
        try:
            return requests.get(f"{self.url}/login", timeout=5).ok
        except (requests.ConnectionError, requests.Timeout):
            return False


class Customer:
    """Someone with a browser's cookies, but no scripts."""

    def __init__(self, shop, name):
        self.shop = shop
        self.session = requests.Session()
        self.logged_in = self.post("/login", name=name, password=PASSWORD)

    def get(self, path, **options):
        return self.session.get(self.shop.url + path, timeout=20, **options)

    def post(self, path, csrf=None, stream=False, **fields):
        form = self.get("/login").text
        fields["csrf"] = form.split('name="csrf" value="')[1].split('"')[0] if csrf is None else csrf
        return self.session.post(self.shop.url + path, data=fields, stream=stream, timeout=20)

    def begin(self, prompt, order):
        body = {"conversationId": f"order-{order}", "prompt": prompt}
        return self.session.post(f"{self.shop.url}/relay/streams", json=body, timeout=20)


@pytest.fixture(scope="module")
def shared_shop(shared_sandbox, tmp_path_factory):
    shop = Shop(shared_sandbox.url, tmp_path_factory.mktemp("shop"))
    yield shop
    shop.stop()


@pytest.fixture
def shop(shared_shop, sandbox):
    return shared_shop


@pytest.fixture
def ann(shop):
    return Customer(shop, "ann")


@pytest.fixture
def bob(shop):
    return Customer(shop, "bob")


def test_a_customer_logs_in_asks_about_an_order_and_sees_the_tokens_come(shop, sandbox, browser, prompt, bob):
    sandbox.script(prompt, ["Your ", "mugs ", "are ", "near."], gate=True)
    context = browser.new_context()
    complaints = []
    context.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page = context.new_page()
    followed = []
    page.on("request", lambda request: followed.append(request.url) if request.resource_type == "eventsource" else None)
    page.goto(shop.url)
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("link", name="Order 1").click()
    expect(page.get_by_text("2 × Mug, 12.00 € each")).to_be_visible()
    page.get_by_label("Your question").fill(prompt)
    page.get_by_role("button", name="Ask", exact=True).click()
    answer = page.locator("#talk .answer")
    expect(answer).to_have_text("Your ")
    assert bob.get(followed[0].removeprefix(shop.url).partition("?")[0]).status_code == 404, "it is ann's"
    sandbox.receipt(prompt, 4)
    expect(answer).to_have_text("Your mugs are near.")
    expect(answer).to_have_attribute("data-state", "complete")
    until(lambda: sandbox.text_of("order-1").endswith("Your mugs are near."), "the transcript has it")

    page.get_by_label("Your question").fill(prompt)
    page.get_by_role("button", name="Ask on a plain page").click(no_wait_after=True)
    expect(page.locator("#answer")).to_contain_text("Your mugs are near.")
    assert complaints == []
    context.close()


def test_no_one_gets_in_without_the_password_and_no_form_without_its_token(shop, ann):
    assert ann.post("/login", name="ann", password="wrong").status_code == 401
    assert ann.post("/login", csrf="forged", name="ann", password=PASSWORD).status_code == 400
    stranger = requests.get(f"{shop.url}/orders/1", timeout=10)
    assert stranger.url == f"{shop.url}/login"


def test_another_customer_sees_neither_the_stream_nor_the_order_nor_its_conversation(shop, sandbox, prompt, ann, bob):
    sandbox.script(prompt, ["secret"])
    stream = ann.begin(prompt, order=1).json()
    path = f"/relay/streams/{stream['id']}"
    assert ann.get(path, headers={"Accept": "application/json"}).status_code == 200
    assert bob.get(path, headers={"Accept": "application/json"}).status_code == 404
    assert bob.get("/orders/1").status_code == 404
    assert bob.begin(prompt, order=1).status_code == 403
    assert bob.get("/relay/conversations/order-1/streams").status_code == 403
    nobody = requests.post(f"{shop.url}/relay/streams", json={"conversationId": "order-1", "prompt": "x"}, timeout=10)
    assert nobody.status_code == 401


def test_the_shops_error_pages_stay_its_own(shop, ann):
    for path in ("/nowhere", "/relay/nowhere", "/orders/99"):
        answer = ann.get(path)
        assert answer.status_code == 404
        assert "The shop has no such page." in answer.text
    refused = ann.post("/orders/1/answer", question=" ")
    assert refused.status_code == 400
    assert "Send the text to ask." in refused.text


def test_pages_that_stream_hold_no_connection_to_the_database(shop, sandbox, prompt, ann):
    """Each worker has two connections, and there are more streams than all of them."""
    sandbox.script(prompt, ["a ", "b"], gate=True)
    with ThreadPoolExecutor(8) as pool:
        pages = list(pool.map(lambda _: Page(ann, prompt), range(8)))
    for page in pages:
        page.read_until(b'<p id="answer">a ')
    assert ann.get("/orders/1").ok, "the database still answers"
    sandbox.receipt(prompt, 2)
    assert all(b'<p id="answer">a b</p>' in page.whole() for page in pages)
    until(lambda: sandbox.text_of("order-1").count("a b") == 8, "no text is left to come into the next test")


class Page:
    """The answer about order 1 as a page, as it comes."""

    def __init__(self, customer, question):
        answer = customer.post("/orders/1/answer", question=question, stream=True)
        self._pieces = answer.iter_content(1)
        self._received = b""

    def read_until(self, text):
        while text not in self._received:
            self._received += next(self._pieces)

    def whole(self):
        return self._received + b"".join(self._pieces)


def test_a_deploy_in_mid_stream_loses_nothing(sandbox, prompt, tmp_path):
    shop = Shop(sandbox.url, tmp_path, DISCONNECT_GRACE="30")
    try:
        ann = Customer(shop, "ann")
        tokens = [f"t{number} " for number in range(40)]
        sandbox.script(prompt, tokens, interval_ms=100)
        page = Page(ann, prompt)
        page.read_until(b"t0 ")
        url = ann.begin(prompt, order=1).json()["url"]
        first = Answer(ann.get(url, stream=True))
        events = [next(iter(first)) for _ in range(3)]
        before = set(shop.workers)
        shop.process.process.send_signal(signal.SIGHUP)
        events += list(first)  # sent elsewhere
        assert not any(event.get("event") == "done" for event in events)

        def come_back():
            cursor = next(event["id"] for event in reversed(events) if "id" in event)
            try:
                answer = ann.get(url, headers={"Last-Event-ID": cursor}, stream=True)
            except requests.ConnectionError:
                return False
            events.extend(Answer(answer))
            return events[-1].get("event") == "done"

        until(come_back, "the rest, from another worker")
        assert [event["data"]["token"] for event in events if "token" in event.get("data", "")] == tokens
        assert f'<p id="answer">{"".join(tokens)}</p>'.encode() in page.whole()
        until(lambda: not before & set(shop.workers), "the old workers are gone")
        until(
            lambda: sandbox.text_of("order-1") == "".join(tokens) * 2,
            "the transcript has both, one after the other",
            patience=60,
        )
    finally:
        shop.stop()
