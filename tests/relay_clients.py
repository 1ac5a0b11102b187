"""The relay's own clients, each as a program that the tests start, watch and stop: browser, Node, Python twice."""

import asyncio
import contextlib
import json
import shutil
import subprocess
import threading
from dataclasses import asdict

from relay_client import AsyncRelay, Relay, RelayError

from .conftest import ROOT, until


class Client:
    """`events` are dicts with `type`, in the names of relay.js; `end` or `thrown` is the last."""

    def of(self, *types):
        return [event for event in self.events if event["type"] in types]

    @property
    def text(self):
        return "".join(event["token"] for event in self.of("token"))

    @property
    def done(self):
        return next(iter(self.of("done")), None)

    def until_end(self, patience=40):
        until(lambda: self.of("end", "thrown"), f"{self.name}'s end", patience)
        return self.events[-1]


class Chromium(Client):
    name = "Chromium"

    READ = """([{ base, options, question, url }]) => {
        Object.assign(window, { heard: [], stop: new AbortController(), place: url });
        const read = async () => {
            const { Relay } = await import("/page/relay.js");
            window.relay = new Relay(base, options);
            const given = { signal: stop.signal };
            for await (const event of question ? relay.ask(question, given) : relay.follow(url, given)) {
                window.place = event.url ?? place;
                const { error } = event;
                heard.push({ ...event, error: error?.message ?? error, status: error?.status ?? event.status });
            }
        };
        read().then(() => heard.push({ type: "end" }), ({ name, code }) => heard.push({ type: "thrown", name, code }));
    }"""

    def __init__(self, browser, page_url):
        """`page_url`: where the page comes from; the clients ask there, or anywhere that it lets them."""
        self._context = browser.new_context()
        self._page = self._context.new_page()
        self._page.goto(f"{page_url}/?conversation=quiet")

    def start(self, **what):
        self._page.evaluate(self.READ, [what])

    @property
    def events(self):
        return self._page.evaluate("window.heard")

    def abort(self):
        self._page.evaluate("window.stop.abort()")

    def cancel(self):
        self._page.evaluate("window.relay.cancel(window.place)")

    def close(self):
        self._context.close()


class Node(Client):
    name = "Node"

    def __init__(self, folder):
        self._module = folder / "relay.mjs"  # copied, as into a project of its user's
        shutil.copyfile(ROOT / "client" / "relay.js", self._module)
        self.events = []
        self._process = None

    def start(self, **what):
        command = ["node", ROOT / "tests" / "npm" / "relay.mjs", self._module, json.dumps(what)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self._process.stdout:
            self.events.append(json.loads(line))

    def _say(self, word):
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()

    def abort(self):
        self._say("abort")

    def cancel(self):
        self._say("cancel")

    def close(self):
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


class Python(Client):
    """Reads in a thread of its own."""

    name = "Python"

    def __init__(self, _folder):
        self.events = []
        self._relay = None
        self._answer = None
        self._stopping = False

    def start(self, **what):
        threading.Thread(target=self._run, kwargs=what, daemon=True).start()

    def _run(self, **what):
        try:
            self._read(**what)
            self.events.append({"type": "end"})
        except RelayError as error:
            self.events.append({"type": "thrown", "name": "RelayError", "code": error.code})

    def _read(self, base, options, question=None, url=None):
        self._relay = Relay(base, **options)  # closed later: another thread may still be cancelling
        with opened(self._relay, question, url) as answer:
            self._answer = answer
            for event in answer:
                self.events.append(plain(event))
                if self._stopping:
                    break

    def abort(self):
        self._stopping = True  # a thread that waits for bytes sees it with the next event

    def cancel(self):
        self._answer.cancel()

    def close(self):
        if self._relay is not None:
            self._relay.close()


class Asyncio(Python):
    name = "asyncio"
    _cancelling = None

    def _read(self, **what):
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._follow(**what))
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)
        self._loop.close()

    async def _follow(self, base, options, question=None, url=None):
        async with AsyncRelay(base, **options) as relay, opened(relay, question, url) as answer:
            self._answer = answer
            async for event in answer:
                self.events.append(plain(event))
            if self._cancelling is not None:
                await self._cancelling

    def abort(self):
        self._loop.call_soon_threadsafe(self._task.cancel)

    def cancel(self):
        self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self):
        self._cancelling = self._loop.create_task(self._answer.cancel())


def opened(relay, question, url):
    if question is None:
        return relay.follow(url)
    return relay.ask(question["prompt"], conversation_id=question["conversationId"])


def plain(event):
    """An event of the Python client in the names of relay.js."""
    kind = {"Opened": "open", "Failure": "error", "Retrying": "status"}.get(type(event).__name__)
    fields = asdict(event)
    plainly = {"type": kind or type(event).__name__.lower(), **fields}
    if plainly["type"] == "token":
        plainly["token"] = fields["text"]
    if plainly["type"] == "lost":
        plainly |= {"in": event.seconds, "error": event.error.sentence, "status": event.error.status}
    return plainly
