"""`relay ask`: asks a running server, and prints the answer as it comes."""

import os
import sys
import time
from collections.abc import Iterator
from io import TextIOWrapper
from typing import Any, Protocol

import orjson
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from .prompt import MAX_PROMPT_CHARS
from .remote import Failed, Lost, Server, Stream
from .settings import host_and_port, leave
from .sse_reader import Received
from .telemetry import UNPRINTABLE, printable, redact
from .undelivered import settings_for_the_store

FAILURE = 1  # exit status
CANCELLED = 130  # what shells give to a program that Ctrl-C has ended


class Display(Protocol):
    """How events are shown."""

    def show(self, event: Received) -> None: ...

    def close(self) -> None:
        """After the last event, or the failure in its place."""


class Lines:
    """Events as JSON lines, for programs."""

    def show(self, event: Received) -> None:
        print(orjson.dumps(event._asdict()).decode(), flush=True)

    def close(self) -> None:
        pass


class Plain:
    """The text alone, for files and pipes."""

    def __init__(self) -> None:
        self._ends_line = True

    def show(self, event: Received) -> None:
        if isinstance(token := event.data.get("token"), str):
            sys.stdout.write(token)
            sys.stdout.flush()
            self._ends_line = token.endswith("\n") if token else self._ends_line

    def close(self) -> None:
        if not self._ends_line:
            print(flush=True)
            self._ends_line = True


class Terminal:
    """A spinner with the time until the first token, the text as it comes, and a line about it in the end."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._began = time.monotonic()
        self._first_at: float | None = None
        self._tokens = 0
        self._ends_line = True
        self._console = Console(highlight=False)
        bar = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._progress = Progress(*bar, console=self._console, transient=True)
        self._task = self._progress.add_task("waiting for the first token", total=None)
        self._progress.start()

    def show(self, event: Received) -> None:
        if isinstance(token := event.data.get("token"), str):
            if self._first_at is None:
                self._first_at = time.monotonic()
                self._progress.stop()
            self._tokens += 1
            text = harmless(token)
            self._console.file.write(text)
            self._console.file.flush()
            self._ends_line = text.endswith("\n") if text else self._ends_line
        elif event.event == "status":
            what = f"tries again in {event.data.get('in')} s ({event.data.get('reason')})"
            self._progress.update(self._task, description=printable(what))
        elif event.event == "done":
            self.close()
            self._console.print(self._figures(event.data), style="dim", markup=False)

    def close(self) -> None:
        self._progress.stop()
        if not self._ends_line:
            self._console.file.write("\n")
            self._ends_line = True

    def _figures(self, done: dict[str, Any]) -> str:
        parts = []
        if self._first_at is not None:
            seconds = time.monotonic() - self._first_at
            parts.append(f"first token after {self._first_at - self._began:.2f} s")
            if self._tokens > 1 and seconds > 0:
                parts.append(f"{(self._tokens - 1) / seconds:.0f} tokens/s")
        parts += [str(done.get("finish_reason") or done.get("status")), f"stream {self._stream.id}"]
        return printable(" · ".join(parts))


def harmless(text: str) -> str:
    """What a model says cannot command the terminal."""
    return UNPRINTABLE.sub(lambda found: found[0] if found[0] in "\n\t" else repr(found[0])[1:-1], text)


def ask(words: str, url: str | None, key: str | None, conversation: str | None, as_json: bool) -> int:
    """Asks, prints, and returns the exit status."""
    question = {"prompt": sys.stdin.read(MAX_PROMPT_CHARS + 1) if words == "-" else words}
    if conversation is not None:
        question["conversationId"] = conversation
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, TextIOWrapper):
            output.reconfigure(errors="replace")  # not every terminal has each character
    url = url or own_address()
    server = Server(url, key)
    stream: Stream | None = None
    display: Display | None = None
    try:
        stream = server.begin(question)
        display = Lines() if as_json else Terminal(stream) if sys.stdout.isatty() else Plain()
        return print_answer(server.follow(stream), display)
    except KeyboardInterrupt:
        if display is not None:
            display.close()
        cancelled = stream is not None and server.cancel(stream)
        return complain("cancelled" if cancelled else "left; the server cancels what no one follows", CANCELLED)
    except BrokenPipeError:  # `relay ask ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if stream is not None:
            server.cancel(stream)
        return FAILURE
    except Lost as lost:
        return complain(f"{url} cannot be reached, or breaks off again and again: does it run there? [{lost}]")
    except Failed as failed:
        return complain(f"{failed} [{failed.code}]")
    finally:
        if display is not None:
            display.close()


def print_answer(events: Iterator[Received], display: Display) -> int:
    """The exit status, 0 for an answer that is complete. Raises Failed or Lost."""
    error: dict[str, Any] | None = None
    for event in events:
        display.show(event)
        if "error" in event.data:
            error = event.data
        if event.event == "done" and event.data.get("status") != "complete":
            display.close()
            said = error or {"error": "The answer has ended early.", "code": event.data.get("status")}
            raise Failed(str(said["error"]), str(said.get("code")))
    return 0


def complain(line: str, status: int = FAILURE) -> int:
    print(printable(redact(line)), file=sys.stderr)
    return status


def own_address() -> str:
    """Where a server with the settings of this folder listens."""
    bind = settings_for_the_store().bind
    if bind.startswith("unix:"):
        leave(f"BIND={bind}: name an address that leads there (--url http://HOST:PORT)")
    host, port = host_and_port(bind)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - what it listens on is not asked
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
