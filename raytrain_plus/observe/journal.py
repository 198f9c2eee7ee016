"""The journal: one JSON object per line, the only thing that reports and tests read.

`run` opens it, `end` closes it; between them stand `generation`, `step`, `worker`, `evaluate`,
`checkpoint`, `fault`, `environment` (how the workers compute, by the first that came) and `account`
(where the workers' time went in a generation, and what they fetched, in sums over all who could
report). Every line has `event` and `time` (Unix seconds). A line is written whole or, when the
writer is killed in it, is the torn last line, which readers leave out.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE_NAME = "journal.jsonl"

Event = dict[str, Any]


class Journal:
    """Appends events to a run's `journal.jsonl`.

    Args:
        folder: the run's folder, which must exist.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        torn = self.path.exists() and self.path.read_bytes()[-1:] not in (b"\n", b"")
        self._file = self.path.open("a", encoding="utf-8")
        if torn:
            self._file.write("\n")

    def write(self, event: str, **fields: Any) -> Event:
        """Append one event and return it."""
        return self.write_all([{"event": event, "time": time.time(), **fields}])[0]

    def write_all(self, events: list[Event]) -> list[Event]:
        """Append finished events, in one write."""
        self._file.write("".join(json.dumps(event) + "\n" for event in events))
        self._file.flush()
        return events

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def follow(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """Return the whole events that stand after a byte offset, and the offset behind them."""
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    end = data.rfind(b"\n") + 1
    return list(_events(data[:end])), offset + end


def read(path: Path) -> list[Event]:
    """Return all whole events of a journal file, or of the run's folder that holds it.

    Raises:
        FileNotFoundError: there is no journal.
    """
    file = path / FILE_NAME if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(f"no journal at {file}: is it the folder of a run?")
    return follow(file)[0]


def each(path: Path) -> Iterator[Event]:
    """Yield the whole events of a journal file one by one, for journals that are long.

    A line that is being written is left out.

    Raises:
        FileNotFoundError: there is no journal.
    """
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield from _events(line)


def since_last_run(events: list[Event]) -> list[Event]:
    """Return what follows the last `run`: a run that is resumed writes on in the same journal."""
    begins = [i for i, event in enumerate(events) if event["event"] == "run"]
    return events[begins[-1] :] if begins else events


def _events(data: bytes) -> Iterator[Event]:
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # a line torn by a kill, closed by the writer that came after
        if isinstance(event, dict) and "event" in event:
            yield event
