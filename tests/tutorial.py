"""The fenced blocks of pages, and the commands in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs" / "tutorial"

_BLOCK = re.compile(
    r'^(?P<indent> *)```(?P<language>\w*)(?: title="(?P<title>[^"]*)")?\n(?P<text>.*?)^ *```$',
    re.MULTILINE | re.DOTALL,
)

_COMMAND = re.compile(r"(?:^| -- +|/bin/)raytrain-plus (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: `sh` is run by the tests, `bash` is not; `text` is what a command prints.
        title: the file that a block holds, or the terminal in which it is typed; may be empty.
        text: its lines.
    """

    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    return [
        Block(
            found["language"],
            found["title"] or "",
            re.sub(rf"^{found['indent']}", "", found["text"], flags=re.MULTILINE),
        )
        for found in _BLOCK.finditer(page.read_text())
    ]


def files(page: Path) -> dict[str, str]:
    """Return the files that a page shows."""
    return {b.title: b.text for b in blocks(page) if b.language == "python" and b.title}


def commands(page: Path) -> list[list[str]]:
    """Return the arguments of each `raytrain-plus` command in a page's blocks, without `...`."""
    scripts = [b.text.replace("\\\n", " ") for b in blocks(page) if b.language in ("sh", "bash")]
    calls = [call for script in scripts for call in _COMMAND.findall(script)]
    return [[word for word in shlex.split(call, comments=True) if word != "..."] for call in calls]
