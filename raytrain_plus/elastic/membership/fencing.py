"""One coordinator at a time: whoever begins to lead a run leaves word, and who led before stops.

A coordinator that Ray believes dead may live on for seconds, cut off from its node or its network,
while another has taken its place. It must neither write the journal nor plan.
"""

import uuid
from pathlib import Path

_FILE = "leader"


class FencedError(RuntimeError):
    """Another coordinator leads the run now."""


class Fence:
    """Who leads a run, in a file of its folder.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        self._name = uuid.uuid4().hex

    def take(self) -> None:
        """Lead from now on."""
        temporary = self._path.with_name(f".{_FILE}-{self._name}")
        temporary.write_text(self._name)
        temporary.replace(self._path)

    def check(self) -> None:
        """Raise FencedError if somebody else leads."""
        try:
            leader = self._path.read_text()
        except FileNotFoundError:
            return
        if leader != self._name:
            raise FencedError("another coordinator leads the run now")
