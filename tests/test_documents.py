"""The blocks of a Markdown text, and the commands in them."""

from .documents import Block, Command, blocks, commands

DOCUMENT = """\
# A title
    make run     # sets up

Or:

    curl -N http://127.0.0.1:8000/stream-llm \\
         -d '{"prompt": "a # b"}'   # a comment

    id: 1
    data: {"token":"I"}

```python
import json
make = 1
```
- a list
  that goes on

```sh
A_B=1 .venv/bin/python -m server.cli run
```
"""


def test_blocks_are_indented_or_fenced():
    assert [(block.line, block.language) for block in blocks(DOCUMENT)] == [
        (2, ""),
        (6, ""),
        (13, "python"),
        (20, "sh"),
    ]


def test_commands_are_whole_without_comments_and_nothing_else_is_one():
    assert [command for block in blocks(DOCUMENT) for command in commands(block)] == [
        Command(2, "make run"),
        Command(6, """curl -N http://127.0.0.1:8000/stream-llm -d '{"prompt": "a # b"}'"""),
        Command(20, "A_B=1 .venv/bin/python -m server.cli run"),
    ]


def test_output_is_no_command():
    assert commands(Block(1, "", '{"id":"1"}\nmaking: 1\ncurly')) == []
