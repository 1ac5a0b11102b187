"""What the documents show: the commands in their blocks, and whole programs. No I/O.

A block is fenced, or indented by four spaces. A line is a command when it begins with the name of a
program; what else stands in a block is output, a file's content, or a program in another language.
"""

import re
import shlex
from typing import NamedTuple

PROGRAMS = (
    r"make|pip|pip-audit|python3?|\.venv/bin/\S+|relay|curl|git|cp|openssl|nginx|gunicorn|flask|node|npm|docker|"
    r"systemctl|journalctl|systemd-analyze|redis-cli|redis-server|sqlite3|promtool|sudo|install|useradd|kill|export|apt-get|"
    r"systemd-run|runuser|printf|certbot|rm|ln|/opt/relay/\S+"
)
COMMAND = re.compile(rf"(?:[A-Z][A-Z_]*=\S* )*(?:{PROGRAMS})(?: (?!=)|$)")
FENCE = re.compile(r"\s*```\s*(\w*)")


class Block(NamedTuple):
    line: int  # of the document, counted from 1
    language: str  # "" where none is named
    text: str


class Command(NamedTuple):
    line: int
    text: str  # lines that go on behind a backslash are one; without the comment


def blocks(document):
    """The blocks of a Markdown text."""
    found, lines, number = [], document.split("\n"), 0
    while number < len(lines):
        fence = FENCE.match(lines[number])
        if fence:
            end = next(n for n in range(number + 1, len(lines)) if FENCE.match(lines[n]))
            found.append(Block(number + 2, fence[1], "\n".join(lines[number + 1 : end])))
            number = end + 1
        elif lines[number].startswith("    "):
            end = number
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            text = "\n".join(line[4:] for line in lines[number:end]).rstrip("\n")
            found.append(Block(number + 1, "", text))
            number = end
        else:
            number += 1
    return found


def commands(block):
    """The commands in a block."""
    found, lines, number = [], block.text.split("\n"), 0
    while number < len(lines):
        begin, text = number, lines[number].strip().removeprefix("$ ")
        if block.language in {"", "sh", "bash", "shell", "console"} and COMMAND.match(text):
            while text.endswith("\\"):
                number += 1
                text = f"{text[:-1].rstrip()} {lines[number].strip()}"
            found.append(Command(block.line + begin, without_comment(text)))
        number += 1
    return found


def without_comment(command):
    """`command` up to a # that a shell takes for a comment's beginning."""
    for place in re.finditer(r"(?<=\s)#", command):
        try:
            shlex.split(command[: place.start()])
        except ValueError:  # it stands inside of quotes
            continue
        return command[: place.start()].rstrip()
    return command
