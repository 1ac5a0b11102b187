"""`relay doctor`: is it well set up? Each check says what it found and, where something is wrong, what to do.

finding.py   what a check is, and what it can find; words.py: what a place says of its refusal
local.py     settings, access, file limits
network.py   the way to each place: name, connection, certificate
genesys.py   login.py, gateway.py and transcript.py, which ask with the server's own parts
store.py     SQLite, or Redis: redis_store.py
clock.py     this machine's clock and the others
public.py    a running server, asked through its public address; arrival.py: how its stream arrived
report.py    findings in, text or JSON out

No check writes into a turn or a transcript, but for those of `--url`: they ask one question.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial

import gevent

from ..relay import make_credentials
from ..settings import NoAccess, Settings, SettingsError, read
from ..telemetry import hide_for_good, printable, redact
from . import genesys, local, network, public, store
from .clock import Clock, compare
from .finding import CHECK_TIMEOUT, Check, Finding, Outcome, State, bad, skipped
from .report import Report, exit_status

USAGE = 2  # exit status for settings that cannot be right


def diagnose(url: str | None, key: str | None, conversation: str | None, as_json: bool) -> int:
    """Runs every check, prints what each finds, and returns the exit status.

    `url` is the public address of a running server, asked with `key`; the standard library must be patched.
    """
    logging.disable(logging.CRITICAL)  # what is wrong stands in the report
    hide_for_good(*filter(None, [key]))
    report = Report(as_json)
    with ExitStack() as stack:
        settings, findings = read_settings()
        for finding in findings:
            report.add(finding)
        told = {one.check for one in findings}
        checks = [one for one in local_checks(settings, stack) if one.name not in told] if settings else []
        if url is not None:
            visit = public.Visit(url, key, conversation)
            stack.callback(visit.close)
            checks += public.checks(visit)
        findings += examine(checks, report)
    report.end(findings)
    return USAGE if settings is None else exit_status(findings)


def read_settings() -> tuple[Settings | None, list[Finding]]:
    """The settings, where there are any to go on with, and what is to be said of them."""
    found = read()
    if isinstance(found, Settings):
        hide_for_good(*found.secrets)
        return found, [finding("settings", local.settings_are_read())]
    if isinstance(found[0], NoAccess):  # all else can be looked at nevertheless
        os.environ["ACCESS"] = "open"
        settings, findings = read_settings()
        return settings, [*findings, finding("access", local.NO_ONE_MAY_ASK)]
    return None, [finding("settings", refused(error)) for error in found]


def refused(error: SettingsError) -> Outcome:
    return bad(str(error), "Set it in the environment or in .env; .env.example says what each setting means.")


def local_checks(settings: Settings, stack: ExitStack) -> Iterator[Check]:
    """All but those of a public address, in an order in which none stands on a later one."""
    clocks: list[Clock] = []
    credentials = make_credentials(settings)
    if credentials is not None:
        stack.callback(credentials.close)
    yield from local.checks(settings)
    yield from network.checks(settings)
    yield from local.issuer_checks(settings)
    yield from genesys.checks(settings, credentials, clocks)
    yield from store.checks(settings, clocks)
    yield Check("clock", partial(compare, clocks))


def examine(checks: Iterable[Check], report: Report) -> list[Finding]:
    """Runs the checks one after the other, each for CHECK_TIMEOUT at most."""
    states: dict[str, State] = {}
    findings = []
    for check in checks:
        without = next((name for name in check.needs if states.get(name) in (State.FAILED, State.SKIPPED)), None)
        if without is None:
            with report.looking(check.name):
                outcome = bounded(check.look)
        else:
            outcome = skipped(f"it stands on “{without}”")
        states[check.name] = outcome.state
        findings.append(finding(check.name, outcome))
        report.add(findings[-1])
    return findings


def bounded(look: Callable[[], Outcome]) -> Outcome:
    late = gevent.Timeout(CHECK_TIMEOUT)
    try:
        with late:
            return look()
    except gevent.Timeout as timeout:
        if timeout is not late:
            raise
        return bad(f"no end within {CHECK_TIMEOUT:.0f} s", "Something on the way takes what is sent and never answers.")
    except SettingsError as error:  # a proxy that cannot be used
        return refused(error)
    except Exception as error:  # noqa: BLE001 - one check that breaks must not hide what the others find
        kind = type(error).__name__  # only the class: texts may quote a request
        return bad(f"the check itself broke: {kind}", "This is a fault of `relay doctor`: report it with this line.")


def finding(check: str, outcome: Outcome) -> Finding:
    return Finding(check, outcome.state, *(printable(redact(text)) for text in (outcome.found, outcome.fix)))


def main(url: str | None, key: str | None, conversation: str | None, as_json: bool) -> None:
    """Ends the program with the exit status."""
    try:
        sys.exit(diagnose(url, key, conversation, as_json))
    except KeyboardInterrupt:
        sys.exit(130)
