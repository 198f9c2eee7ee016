"""Ownership of a run: one driver and its coordinators at a time, on any cluster.

Each owner creates the next numbered record in the folder `owners` of the run's folder, and also of
its checkpoint storage if that is elsewhere. A record is created only if it does not exist yet. So
one of two processes that try at once succeeds, and a crash leaves no lock behind. A driver and its
coordinators share a random `claim`. An owner that finds a later record with another claim has lost
the run: it must write nothing more.

A live owner renews the time of its `.alive` file every second, in an object store every five. An
owner that ends deletes the file. An owner is gone if it has ended, if its process is known to be
gone together with its Ray cluster, or if it has given no sign of life for `STALE` seconds, in an
object store for `STALE_IN_STORE`.
"""

import contextlib
import dataclasses
import getpass
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from raytrain_plus.redaction import redact
from raytrain_plus.storage.errors import ExistsError, StorageError
from raytrain_plus.storage.locations import local_path
from raytrain_plus.storage.store import Folder, Store, store_of

FOLDER = "owners"
LOCAL = "local"
"""Instead of the address of a Ray cluster: the run is in its driver's process alone."""

STALE = 15.0  # seconds without a sign of life after which an owner counts as gone

STALE_IN_STORE = 60.0  # the same in an object store, where each sign of life is a request

_BEAT, _BEAT_IN_STORE = 1.0, 5.0  # seconds between two signs of life
_PATIENCE = 5.0  # seconds for such a request
_LOOK = 0.2  # seconds between two looks at an owner that may be gone
_GRACE = 3.0  # seconds for which an owner must live before its run is refused
_CONNECT_SECONDS = 1.0
_BOOT, _NAMESPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")


class OwnedError(ValueError):
    """The run belongs to another live process. The message says what to do."""


@dataclass(frozen=True, kw_only=True)
class OwnerProcess:
    """A process that others on the same host can find again.

    Attributes:
        host: the host's name.
        kernel: the kernel and the namespace in which `pid` is valid; empty if unknown.
        pid: its id.
        began: its start in the kernel's ticks, since ids are reused; 0 if unknown.
    """

    host: str
    kernel: str
    pid: int
    began: int

    @classmethod
    def this(cls) -> "OwnerProcess":
        """Return this process."""
        pid = os.getpid()
        return cls(host=socket.gethostname(), kernel=_kernel(), pid=pid, began=_began(pid))

    def lives(self) -> bool | None:
        """Say whether it lives; None if that cannot be seen from here."""
        if not self.kernel or self.kernel != _kernel():
            return None
        began = _began(self.pid)
        return began != 0 and began == self.began


@dataclass(frozen=True, kw_only=True)
class Owner:
    """One record: an owner of a run.

    Attributes:
        number: its place among the run's owners, from 1.
        claim: shared by a driver and its coordinators.
        run_id: the id of the run, which differs from that of other runs with the same name.
        role: what wrote the record.
        process: the process that wrote the record.
        user: the user who runs the process.
        address: the address of its Ray cluster.
        folder: the run's folder, as its owner sees it.
        since: the Unix time of the record.
    """

    number: int
    claim: str
    run_id: str
    role: Literal["driver", "coordinator"]
    process: OwnerProcess
    user: str
    address: str
    folder: str
    since: float

    @classmethod
    def this(
        cls,
        claim: str,
        run_id: str,
        role: Literal["driver", "coordinator"],
        address: str,
        folder: Folder,
    ) -> "Owner":
        """Return a record of this process, without a number yet."""
        return cls(
            number=0,
            claim=claim,
            run_id=run_id,
            role=role,
            process=OwnerProcess.this(),
            user=_user(),
            address=address,
            folder=redact(str(folder)),
            since=time.time(),
        )

    @classmethod
    def parse(cls, number: int, content: bytes) -> "Owner":
        """Read a record. A damaged one names no owner; then only its sign of life counts."""
        try:
            said = json.loads(content)
            process = OwnerProcess(**said.pop("process"))
            owner = cls(number=number, process=process, **said)
            texts = (owner.claim, owner.run_id, owner.user, owner.address, owner.folder)
            numbers = (process.pid, process.began, owner.since)
            if not all(isinstance(one, str) for one in (*texts, process.host, process.kernel)):
                raise TypeError("a field is not text")
            if not all(isinstance(one, int | float) for one in numbers):
                raise TypeError("a field is not a number")
        except (ValueError, TypeError, KeyError, AttributeError):
            unknown = OwnerProcess(host="an unknown host", kernel="", pid=0, began=0)
            return cls(
                number=number, claim="", run_id="", role="driver", process=unknown, user="?",
                address="", folder="", since=0.0,
            )  # fmt: skip
        return owner

    def dump(self) -> bytes:
        """Return the record's content; its number is its name."""
        said = dataclasses.asdict(self)
        del said["number"]
        return json.dumps(said, indent=1).encode()

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        where = f"process {self.process.pid} on {self.process.host}, user {self.user}"
        ray = "" if self.address == LOCAL else f", Ray at {self.address or 'an unknown address'}"
        return f"{where}{ray}, since {since}"


class Owners:
    """The records of a run's owners in a store.

    Args:
        store: the run's folder, or where its checkpoints are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store.inside(FOLDER)

    def latest(self) -> Owner | None:
        """Return the present or last owner of the run.

        Raises:
            StoreError: the store cannot be read.
        """
        numbers = [number for name in self._store.sizes() if (number := _number(name))]
        if not numbers:
            return None
        return Owner.parse(max(numbers), self._store.read(name_of(max(numbers))))

    def follow(self, owner: Owner, number: int) -> Owner:
        """Add an owner after the last one; returns it with its number.

        Args:
            owner: the new owner.
            number: the number of the last owner, 0 for none.

        Raises:
            ExistsError: another process was added before.
            StoreError: the store cannot be written.
        """
        numbered = dataclasses.replace(owner, number=number + 1)
        self._store.create(name_of(numbered.number), numbered.dump())
        return numbered

    def is_last(self, owner: Owner) -> bool:
        """Say whether an owner is the last one.

        Raises:
            StoreError: the store cannot be read.
        """
        return not self._store.exists(name_of(owner.number + 1))


class Life:
    """An owner's signs of life in the run's folder.

    Args:
        folder: the run's.
        each_time: called after each sign of life, from the thread that gives it.
    """

    def __init__(self, folder: Folder, each_time: Callable[[], None] = lambda: None) -> None:
        self._store = store_of(folder).inside(FOLDER).within(_PATIENCE)
        self._each_time = each_time
        self._over = threading.Event()
        self._number = 0
        self._thread: threading.Thread | None = None

    def follow(self, owners: Owners, owner: Owner, number: int) -> Owner:
        """Add an owner after the last one, and give its signs of life until `end` is called.

        Args:
            owners: the owners in the run's folder.
            owner: the new owner.
            number: the number of the last owner, 0 for none.

        Raises:
            ExistsError: another process was added before.
            StoreError: the folder cannot be written.
        """
        # It is there before the record: without this file, the owner of a record has ended.
        self._store.touch(_alive(number + 1))
        followed = owners.follow(owner, number)
        self._number = followed.number
        self._thread = threading.Thread(target=self._go_on, daemon=True, name="raytrain_plus owner")
        self._thread.start()
        return followed

    def end(self) -> None:
        """Record that this owner has ended. Does nothing without an owner, or after the end."""
        self._over.set()
        if self._number:
            if self._thread is not None and self._thread is not threading.current_thread():
                self._thread.join(_PATIENCE)  # it could bring the file back
            with contextlib.suppress(StorageError):
                self._store.delete(_alive(self._number))

    def _go_on(self) -> None:
        name, is_local = _alive(self._number), self._store.is_local
        while not self._over.wait(_BEAT if is_local else _BEAT_IN_STORE):
            with contextlib.suppress(OSError, StorageError):  # it may be unreachable for a while
                if is_local:
                    os.utime(self._store.local_path / name)
                else:
                    self._store.touch(name)
            self._each_time()


def is_gone(folder: Folder, owner: Owner) -> bool | None:
    """Say whether an owner is gone for good; None if that is not certain yet.

    Args:
        folder: the run's.
        owner: the last record in it.
    """
    silence = store_of(folder).inside(FOLDER).age(_alive(owner.number))
    if silence is None:
        return True
    lives = owner.process.lives()
    if lives is None and silence > stale_after(folder):
        return True
    answers = _answers(owner.address)
    if lives is False:
        # If its Ray cluster lives, that may be about to start the coordinator again.
        return True if silence > stale_after(folder) or not answers else None
    # A process whose cluster has ended is about to end, too.
    return False if answers or owner.address == LOCAL else None


def await_gone(
    folder: Folder, owner: Owner, is_over: Callable[[Owner], bool] = lambda _: False
) -> None:
    """Wait until an owner is gone for good.

    Args:
        folder: the run's.
        owner: the last record in it.
        is_over: says whether an owner on the cluster of this process has ended.

    Raises:
        OwnedError: the owner lives.
    """
    began = lives_since = time.monotonic()
    while not is_over(owner):
        gone, now = is_gone(folder, owner), time.monotonic()
        if gone:
            return
        lives_since = lives_since if gone is False else now
        # A process that was just killed may need a moment to end.
        if now - lives_since > _GRACE or now - began > stale_after(folder) + _GRACE:
            raise OwnedError(refusal(owner, folder))
        time.sleep(_LOOK)


class Held:
    """A run that this driver owns during a `with` block; its coordinators are the next owners.

    Args:
        folder: the run's.
        owner: this driver.
        life: its signs of life.
    """

    def __init__(self, folder: Folder, owner: Owner, life: Life) -> None:
        self.owner = owner
        self._folder = folder
        self._life = life

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._life.end()

    def retire(self) -> None:
        """Record the end of the run's coordinator, which may have had no time to do it."""
        store = store_of(self._folder)
        last = Owners(store).latest()
        if last is not None and last.claim == self.owner.claim:
            with contextlib.suppress(StorageError):
                store.inside(FOLDER).delete(_alive(last.number))


def look(folder: Folder, is_over: Callable[[Owner], bool] = lambda _: False) -> int:
    """Wait until a run's last owner is gone; returns its number, 0 if there was no owner.

    Args:
        folder: the run's.
        is_over: as for `await_gone`.

    Raises:
        OwnedError: the run lives.
        StoreError: the folder cannot be read.
    """
    last = Owners(store_of(folder)).latest()
    if last is None:
        return 0
    await_gone(folder, last, is_over)
    return last.number


def acquire(
    folder: Folder,
    run_id: str,
    address: str,
    before: int,
    is_over: Callable[[Owner], bool] = lambda _: False,
) -> Held:
    """Become the owner of a run, as its driver.

    Args:
        folder: the run's.
        run_id: the run's.
        address: the address of the Ray cluster that this process has joined.
        before: the number that `look` returned before the last state of the run was read.
        is_over: as for `await_gone`.

    Raises:
        OwnedError: the run lives, or has had another owner since then.
        StoreError: the folder cannot be written.
    """
    owners, life = Owners(store_of(folder)), Life(folder)
    number = look(folder, is_over)
    if number == before:
        owner = Owner.this(new_claim(), run_id, "driver", address, folder)
        with contextlib.suppress(ExistsError):
            return Held(folder, life.follow(owners, owner, number), life)
    raise OwnedError(
        f"the run in {folder} was started by another process a moment ago: {owners.latest()}. "
        "Give the command again, or another --name"
    )


def look_from_storage(
    storage: Store | None, is_over: Callable[[Owner], bool] = lambda _: False
) -> int:
    """Wait until the last owner of a run's checkpoints is gone; returns its number, 0 for none.

    Signs of life are in the run's folder, which may be lost, or not visible from this machine.

    Args:
        storage: where the checkpoints are, if that is not the run's folder.
        is_over: as for `await_gone`.

    Raises:
        OwnedError: the run lives, as far as can be seen.
        StoreError: the store cannot be read.
    """
    last = Owners(storage).latest() if storage is not None else None
    if storage is None or last is None:
        return 0
    folder = _folder_seen(last.folder, storage.options)
    if folder is not None:
        there = Owners(store_of(folder)).latest()
        if there is not None and there.run_id == last.run_id:
            await_gone(folder, there, is_over)
            return last.number
    if not is_over(last) and _answers(last.address):
        raise OwnedError(
            f"{refusal(last, last.folder)}. That folder is not visible from here, and Ray "
            f"at {last.address} answers. If the run has ended there, delete {storage.url}/{FOLDER}"
        )
    return last.number


def acquire_storage(storage: Store, held: Held, before: int) -> None:
    """Become the owner of the run's checkpoints as well.

    Args:
        storage: where the checkpoints are, if that is not the run's folder.
        held: this driver's run.
        before: the number of their last owner, as `look_from_storage` returned it.

    Raises:
        OwnedError: they have had another owner since then.
        StoreError: the store cannot be written.
    """
    owners = Owners(storage)
    try:
        owners.follow(held.owner, before)
    except ExistsError as error:
        raise OwnedError(
            f"the checkpoints in {storage.url} were taken by another run a moment ago: "
            f"{owners.latest()}. Give another --name or --checkpoint-storage"
        ) from error


def refusal(owner: Owner, folder: Folder | str) -> str:
    """Say who owns a run, and what to do."""
    stale = STALE if isinstance(folder, str) else stale_after(folder)
    if owner.address == LOCAL:
        return (
            f"the run in {folder} lives: it is a local run in {owner}. End that process, or give "
            "another --name"
        )
    return (
        f"the run in {folder} lives: {owner}. `raytrain-plus attach {folder}` follows it, "
        f"`raytrain-plus stop {folder}` ends it; or give another --name. If that process hangs, "
        f"end it. If its host is lost, give the command again: a run without a sign of life for "
        f"{stale:g} s can be resumed"
    )


def new_claim() -> str:
    """Return a unique claim or id of a run."""
    return uuid.uuid4().hex


def name_of(number: int) -> str:
    """Return the name of a record's file."""
    return f"{number:08d}.json"


def _alive(number: int) -> str:
    return f"{number:08d}.alive"


def _number(name: str) -> int:
    stem, _, kind = name.partition(".")
    return int(stem) if kind == "json" and stem.isdecimal() else 0


def stale_after(folder: Folder) -> float:
    """Return after how many seconds without a sign of life an owner counts as gone."""
    return STALE if store_of(folder).is_local else STALE_IN_STORE


def _folder_seen(place: str, options: Mapping[str, Any]) -> Folder | None:
    """Return the folder of a run if it is visible from here.

    Args:
        place: its path or URL; empty if it is unknown.
        options: for the file system of a URL.
    """
    if not place:
        return None
    path = local_path(place)
    if path is not None:
        return path if (path / FOLDER).is_dir() else None
    with contextlib.suppress(StorageError):
        store = Store(place, options, deadline=_PATIENCE)
        return store if FOLDER in store.folders() else None
    return None


def _answers(address: str) -> bool:
    """Say whether anything listens at a Ray cluster's address; nothing is sent there."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        return False
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True  # if the network fails, the cluster may live
    return True


def _kernel() -> str:
    try:
        return f"{_BOOT.read_text().strip()} {_NAMESPACE.readlink()}"
    except OSError:
        return ""


def _began(pid: int) -> int:
    """Return the start of a process; 0 if there is none, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return 0
    return 0 if fields[0] in ("Z", "X") else int(fields[19])


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a name for its user
        return str(os.getuid())
