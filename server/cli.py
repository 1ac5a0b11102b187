"""The command `relay`: run it, ask it, see whether it is well set up, make keys, see to text that waits."""

import argparse
import os
import sys
from collections.abc import Sequence

from gevent import monkey
from pydantic import SecretStr

from . import launch, undelivered
from .access.keys import make_key
from .settings import REDIS, Settings, leave, load_or_exit, without_password


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    try:
        options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it has seen enough, as in `relay settings | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    relay = argparse.ArgumentParser(prog="relay", description=__doc__)
    commands = relay.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="serve; without OAuth settings, with the sandbox in place of Genesys Cloud")
    run.set_defaults(command=lambda _: launch.run_all())

    show = commands.add_parser("settings", help="check the settings and print them, secrets hidden")
    show.add_argument("--example", action="store_true", help="print the file .env.example instead")
    show.set_defaults(command=lambda options: print(example() if options.example else listing(load_or_exit())))

    question = commands.add_parser("ask", help="ask a running server, and print the answer as it comes")
    question.add_argument("prompt", metavar="PROMPT", help="what to ask; - reads it from standard input")
    question.add_argument("--url", help="where the server is; else the address of BIND")
    add_caller(question, "the conversation that it belongs to")
    question.add_argument("--json", action="store_true", help="print the events, a JSON object a line")
    question.set_defaults(command=ask)

    check = commands.add_parser("doctor", help="see whether it is well set up, and what to do where it is not")
    check.add_argument("--url", help="ask the server at this public address too: one short question")
    add_caller(check, "with --url: ask in this conversation, in place of one that is erased afterwards")
    check.add_argument("--json", action="store_true", help="print a list of findings, for programs")
    check.set_defaults(command=doctor)

    keys = commands.add_parser("keys", help="make keys for those who may ask")
    verbs = keys.add_subparsers(required=True, metavar="COMMAND")
    new = verbs.add_parser("new", help="make a key and print it, once, with what the server is to know of it")
    new.add_argument("name", metavar="NAME", help="whose key it is: streams belong to this name")
    new.set_defaults(command=lambda options: print(fresh_key(options.name)))

    transcript = commands.add_parser("transcript", help="see to text that the transcript does not have yet")
    verbs = transcript.add_subparsers(required=True, metavar="COMMAND")
    waiting = verbs.add_parser("list", help="print the turns whose text the transcript does not have whole")
    waiting.add_argument("--json", action="store_true", help="as JSON, for programs")
    waiting.set_defaults(command=lambda options: undelivered.show(as_json=options.json))
    retry = verbs.add_parser("retry", help="have what was parked sent again")
    retry.add_argument("conversation", nargs="?", metavar="CONVERSATION", help="of this conversation alone")
    retry.set_defaults(command=lambda options: undelivered.retry(options.conversation))
    return relay


def add_caller(command: argparse.ArgumentParser, conversation: str) -> None:
    command.add_argument("--key", help="an API key or a token; better in the environment, as RELAY_KEY")
    command.add_argument("--conversation", metavar="ID", help=conversation)


def ask(options: argparse.Namespace) -> None:
    from . import asking  # noqa: PLC0415 - brings what no other command needs

    key = options.key or os.environ.get("RELAY_KEY")
    try:
        sys.exit(asking.ask(options.prompt, options.url, key, options.conversation, options.json))
    except KeyboardInterrupt:  # a second one, or one before it asks
        sys.exit(asking.CANCELLED)


def doctor(options: argparse.Namespace) -> None:
    monkey.patch_all()  # as in the worker, whose parts it uses: before they are imported
    from .doctor import main  # noqa: PLC0415

    main(options.url, options.key or os.environ.get("RELAY_KEY"), options.conversation, options.json)


def fresh_key(name: str) -> str:
    try:
        fresh = make_key(name)
    except ValueError as error:
        leave(f"NAME cannot be right: {error}")
    return (
        f"For the client, and shown only now:  {fresh.key}\n"
        f"For the server's .env:               RELAY_API_KEYS={fresh.entry}\n"
        f"  or a line in RELAY_API_KEYS_FILE:  {fresh.entry}"
    )


def listing(settings: Settings) -> str:
    """Every setting with the value that it has."""
    return "\n".join(f"{name.upper()}={shown(getattr(settings, name))}" for name in Settings.model_fields)


def example() -> str:
    """The text of .env.example: every setting, its meaning, its default."""
    lines = ["# Every setting of the relay. Copy to .env and set what you need; the values here are the defaults."]
    for name, field in Settings.model_fields.items():
        default = None if field.default_factory else field.default
        lines += ["", f"# {field.description}", f"#{name.upper()}={shown(default)}"]
    return "\n".join(lines)


def shown(value: object) -> str:
    """A setting's value as it stands in the environment; a secret hidden."""
    if isinstance(value, SecretStr):
        return "(hidden)" if value.get_secret_value() else ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, str) and value.startswith(REDIS):
        return without_password(value)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
