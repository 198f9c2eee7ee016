"""The manifest: the file that describes a checkpoint and makes it visible. It is written last."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import pydantic
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter

from raytrain_plus.algorithms.naming import Described
from raytrain_plus.checkpoint.files import CheckpointFile
from raytrain_plus.checkpoint.snapshot import CheckpointError
from raytrain_plus.training.state import Scalars

MANIFEST = "manifest.json"
_FORMAT = 2


def _described(told: list[Any]) -> list[Any]:
    if len(told) != 2 or not isinstance(told[0], str) or not isinstance(told[1], dict):
        raise ValueError("an algorithm is a name and its settings")
    return told


# What a manifest must hold before any of it is used. The replica that loads the state checks the
# rest of the scalars.
_Count = Annotated[int, Field(ge=0, le=10**15, strict=True)]
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
_CONFIG = ConfigDict(extra="forbid")


@pydantic.dataclasses.dataclass(config=_CONFIG)
class _File:
    bytes: _Count
    sha256: _Hash


@pydantic.dataclasses.dataclass(config=ConfigDict(extra="allow"))
class _Scalars:
    step: _Count
    samples: _Count
    tokens: _Count
    aspects: dict[str, Any]
    optimizer: dict[str, Any] | list[Any]
    groups: list[Any]
    bookkeeping: dict[str, tuple[Any, int]] = field(default_factory=dict)


@pydantic.dataclasses.dataclass(config=_CONFIG)
class _Content:
    format: int
    step: _Count
    run: str
    digest: _Hash
    scalars: _Scalars
    algorithms: list[Annotated[list[Any], AfterValidator(_described)]]
    files: dict[_FileName, _File]
    run_id: str = ""
    identity: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    bitwise: bool = True


_CONTENT = TypeAdapter(_Content)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of a checkpoint's manifest.

    Attributes:
        run: the run's name.
        digest: of the state.
        scalars: of the state.
        algorithms: the aspects with which it was trained.
        files: the files.
        identity: what the run's bits depend on.
        environment: the fingerprint of the workers.
        metrics: of the last evaluation at or before its step.
        run_id: tells the run from others of its name; empty where that was not recorded.
        bitwise: whether all workers up to its step proved to compute the same bits.
    """

    run: str
    digest: str
    scalars: Scalars
    algorithms: Sequence[Described]
    files: Sequence[CheckpointFile]
    identity: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    run_id: str = ""
    bitwise: bool = True

    def objection(self, run: str | None, run_id: str = "") -> str:
        """Say why this is not a checkpoint of a run; empty if it is one.

        Args:
            run: the run's name; None accepts any.
            run_id: the run's id. If one of both ids is unknown, the name decides.
        """
        if run is not None and self.run != run:
            return f"it is of the run {self.run!r}"
        if run_id and self.run_id and self.run_id != run_id:
            return (
                f"it is of another run of the same name (id {_short(self.run_id)}, and this run's "
                f"is {_short(run_id)})"
            )
        return ""

    @property
    def step(self) -> int:
        """Committed steps."""
        return int(self.scalars["step"])

    def dump(self) -> bytes:
        """Return the file's content, with a hash over itself: any value in it may be damaged."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["files"]
        files = {entry.file: {"bytes": entry.bytes, "sha256": entry.sha256} for entry in self.files}
        content = {"format": _FORMAT, "step": self.step, **fields, "files": files}
        return json.dumps({**content, "sha256": _hash(content)}, indent=1).encode()

    @classmethod
    def parse(cls, content: bytes, where: str) -> "Manifest":
        """Read a file's content.

        Args:
            content: the bytes.
            where: the file, for the errors.

        Raises:
            CheckpointError: it is damaged, or its format is unknown.
        """
        try:
            fields: dict[str, Any] = json.loads(content)
            whole = fields.pop("sha256") == _hash(fields)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"checkpoint file {where} is damaged: {error!r}") from error
        if not whole:
            raise CheckpointError(f"checkpoint file {where} is damaged (sha256 differs)")
        if fields.get("format") != _FORMAT:
            raise CheckpointError(
                f"checkpoint file {where} is of format {fields.get('format')!r}, and this version "
                f"of raytrain_plus knows {_FORMAT}: use the version that wrote it"
            )
        try:
            checked = _CONTENT.validate_python(fields)
        except (pydantic.ValidationError, RecursionError) as error:
            raise CheckpointError(f"checkpoint file {where} is damaged: {_wrong(error)}") from error
        fields = {**fields, "files": checked.files}
        return cls(
            run=fields["run"],
            digest=fields["digest"],
            scalars=fields["scalars"],
            algorithms=[Described(*one) for one in fields["algorithms"]],
            files=[
                CheckpointFile(file, told.bytes, told.sha256)
                for file, told in fields["files"].items()
            ],
            identity=fields.get("identity", {}),
            environment=fields.get("environment", {}),
            metrics=fields.get("metrics", {}),
            run_id=fields.get("run_id", ""),
            bitwise=fields.get("bitwise", True),
        )


def _wrong(error: Exception) -> str:
    """Say in one line which fields are wrong, the first few of them."""
    if not isinstance(error, pydantic.ValidationError):
        return "it is nested too deeply"
    found = [f"{'.'.join(map(str, e['loc']))[:80]}: {e['msg']}" for e in error.errors()[:3]]
    return "; ".join(found)


def _short(run_id: str) -> str:
    return run_id[:8] or "unknown"


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
