"""What a checkpoint says of itself: the file that makes it visible, and is written last."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raytrain_plus.algorithms.naming import Described
from raytrain_plus.training.pieces import Piece
from raytrain_plus.training.snapshot import CheckpointError
from raytrain_plus.training.state import Scalars

MANIFEST = "manifest.json"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A checkpoint, described.

    Attributes:
        run: the run's name.
        digest: of the state.
        scalars: of the state.
        algorithms: the aspects with which it was trained.
        pieces: the files.
        identity: what the run's bits depend on.
        metrics: of the last evaluation at or before its step.
    """

    run: str
    digest: str
    scalars: Scalars
    algorithms: Sequence[Described]
    pieces: Sequence[Piece]
    identity: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """Committed steps."""
        return int(self.scalars["step"])

    def dump(self) -> bytes:
        """Return the file's content, with a hash over itself: a learning rate may rot, too."""
        said = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del said["pieces"]
        files = {
            piece.file: {"bytes": piece.bytes, "sha256": piece.sha256} for piece in self.pieces
        }
        content = {"format": _FORMAT, "step": self.step, **said, "files": files}
        return json.dumps({**content, "sha256": _hash(content)}, indent=1).encode()

    @classmethod
    def parse(cls, content: bytes, where: str) -> "Manifest":
        """Read a file's content.

        Args:
            content: the bytes.
            where: the file, for the errors.

        Raises:
            CheckpointError: it is damaged, or of a format that is not known.
        """
        try:
            said: dict[str, Any] = json.loads(content)
            whole = said.pop("sha256") == _hash(said)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"checkpoint file {where} is damaged: {error!r}") from error
        if not whole:
            raise CheckpointError(f"checkpoint file {where} is damaged (sha256 differs)")
        if said["format"] != _FORMAT:
            raise CheckpointError(
                f"checkpoint file {where} is of format {said['format']!r}, and this version of "
                f"raytrain_plus knows {_FORMAT}: use the version that wrote it"
            )
        return cls(
            run=said["run"],
            digest=said["digest"],
            scalars=said["scalars"],
            algorithms=[Described(*one) for one in said["algorithms"]],
            pieces=[Piece(file, **told) for file, told in said["files"].items()],
            identity=said.get("identity", {}),
            metrics=said.get("metrics", {}),
        )


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
