"""Each reader of data from disk or network gives an answer or its own error for damaged data.

An error of Python itself, or a reader that takes minutes or all memory, would end a command or a
run because of a damaged file.
"""

import json
import random
from contextlib import suppress

import pytest
import torch

from raytrain_plus.chaos.trace import TraceError, changes, read_trace
from raytrain_plus.checkpoint import checkpointer, manifest
from raytrain_plus.checkpoint.checkpointer import CheckpointError
from raytrain_plus.checkpoint.manifest import MANIFEST
from raytrain_plus.cli.nodes import show
from raytrain_plus.elastic.client import control
from raytrain_plus.elastic.coordinator.run_log import RunLog
from raytrain_plus.elastic.protocol.faults import FaultError, read_faults
from raytrain_plus.frontier.errors import SweepError
from raytrain_plus.frontier.folder import SweepFolder, read_trials, record
from raytrain_plus.frontier.points import FinishedTrial, PointError
from raytrain_plus.frontier.recipe import Recipe, RecipeError, read_recipe
from raytrain_plus.nodes import notices
from raytrain_plus.nodes.diagnosis import Expected
from raytrain_plus.nodes.doctor import ClusterFileError, diagnosis_of, read_cluster_file
from raytrain_plus.nodes.metadata import NoticeFile
from raytrain_plus.nodes.notices import NoticeError
from raytrain_plus.observe import journal
from raytrain_plus.observe.gauges import LiveRun
from raytrain_plus.observe.journal import FILE_NAME, Journal, JournalError
from raytrain_plus.observe.report.history import read_history
from raytrain_plus.observe.report.page import page_of
from raytrain_plus.observe.verify import compare
from raytrain_plus.plain_yaml import YamlError, load_yaml
from raytrain_plus.ray_cluster.gcs import ClusterError
from raytrain_plus.storage.store import Store
from tests.algorithms.tiny import TinyImages, trained
from tests.damage import altered, damaged

TRIES = 150


@pytest.fixture
def draw():
    return random.Random(17)


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """A replica, and a folder with two checkpoints of it."""
    folder = tmp_path_factory.mktemp("run")
    loop, _ = trained(TinyImages(), [], steps=2)
    for step in (1, 2):
        checkpointer.save(folder / checkpointer.name_of(step), loop.replica, "run")
    return loop.replica, folder


def hashed(content):
    """Return a manifest's bytes with the right hash, as an attacker would write it."""
    content = {key: value for key, value in content.items() if key != "sha256"}
    return json.dumps({**content, "sha256": manifest._hash(content)}).encode()


def test_a_damaged_manifest_leads_to_the_older_checkpoint(state, draw):
    replica, folder = state
    newest = folder / checkpointer.name_of(2) / MANIFEST
    content = newest.read_bytes()
    older = 0
    try:
        for number in range(TRIES):
            if number % 2:
                newest.write_bytes(damaged(content, draw))
            else:
                newest.write_bytes(hashed(altered(json.loads(content), draw)))
            found, refused = checkpointer.newest_whole(Store(folder), "run")
            assert found is not None, refused
            if found == checkpointer.name_of(1):
                older += 1
                assert checkpointer.name_of(2) in refused or not newest.parent.exists()
            else:
                with suppress(CheckpointError):  # damage that only a replica can notice
                    checkpointer.load(folder / found, replica)
    finally:
        newest.write_bytes(content)
    assert older > TRIES // 2
    assert checkpointer.newest_whole(Store(folder), "run")[0] == checkpointer.name_of(
        2
    )  # the control


def test_damaged_tensors_are_never_loaded(state, draw):
    replica, folder = state
    place = folder / checkpointer.name_of(1)
    model = place / "model.safetensors"
    content, told = model.read_bytes(), json.loads((place / MANIFEST).read_bytes())
    before = replica.digest()
    try:
        for _ in range(100):
            model.write_bytes(damaged(content, draw))
            if model.read_bytes() == content:
                continue
            told["files"][model.name] = {
                "bytes": model.stat().st_size,
                "sha256": manifest.hashlib.sha256(model.read_bytes()).hexdigest(),
            }
            (place / MANIFEST).write_bytes(hashed(told))
            with pytest.raises(CheckpointError):
                checkpointer.load(place, replica)
            assert replica.digest() == before
    finally:
        model.write_bytes(content)
    assert torch.is_grad_enabled()


EVENTS = [
    {
        "event": "run",
        "time": 1.0,
        "version": 1,
        "run": "r",
        "address": "127.0.0.1:1",
        "identity": {"seed": 1},
    }
    | {"total_steps": 3, "steps_per_epoch": 3, "batch_size": 8, "batch_tokens": 0}
    | {"identity": {"seed": 1}}
    | {"workers": [1, 2], "threads": 1, "task": "a:B", "elastic": {}, "worker_pool": None},
    {"event": "worker", "time": 1.5, "worker": "w1", "state": "ready", "reason": ""},
    {"event": "generation", "time": 2.0, "generation": 1, "step": 0, "workers": 1}
    | {"causes": [{"kind": "start"}], "pause_seconds": 0.0, "members": ["w1"], "ranks": [8]},
    *(
        {"event": "step", "time": 2.0 + s, "step": s, "loss": 1 / s, "loss_hex": (1 / s).hex()}
        | {"busy_seconds": 0.1, "generation": 1, "workers": 1}
        for s in (1, 2, 3)
    ),
    {"event": "evaluate", "time": 6.0, "step": 3, "metrics": {"accuracy": 0.5}},
    {"event": "checkpoint", "time": 6.5, "step": 3, "folder": "/runs/r/checkpoint_00000003"}
    | {"metrics": {"loss": 0.3}},
    {"event": "usage", "time": 6.6, "generation": 1, "seconds": {"compute": 1.0}}
    | {"traffic": {"hits": 1}, "workers": ["w1"], "until": 6.0},
    {"event": "end", "time": 7.0, "state": "finished", "step": 3, "digest": "d", "error": ""}
    | {"loss": 0.3, "metrics": {}, "device_seconds": 0.3, "checkpoint": None, "bitwise": True}
    | {"faults_left": 0, "samples": 24, "tokens": 0, "costs": {}},
]


def everything_that_reads(folder):
    """Read a journal in all ways in which the project reads it."""
    path = folder / FILE_NAME
    rare = []
    live = LiveRun(8, 3, 0.0)
    RunLog(Journal(folder), live.passing(journal.each(path), rare))
    live.readings(10.0)
    compare(journal.each(path), journal.each(path))
    control.status(str(folder), ".")
    page_of(read_history(journal.each(path)), 10.0)


def test_a_damaged_journal_is_read_or_refused(tmp_path, draw, monkeypatch):
    monkeypatch.setattr(control, "join", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(control, "trusted", _untrusted)
    path, refused = tmp_path / FILE_NAME, 0
    Journal(tmp_path).write_all(EVENTS)
    content = path.read_bytes()
    everything_that_reads(tmp_path)  # the control
    for number in range(TRIES):
        path.unlink()
        if number % 2:
            path.write_bytes(damaged(content, draw))
        else:
            wrong = draw.choice(EVENTS)
            lines = [altered(event, draw) if event is wrong else event for event in EVENTS]
            path.write_bytes(b"".join(map(journal.line_of, lines)))
        try:
            everything_that_reads(tmp_path)
        except JournalError:
            refused += 1
    assert refused > TRIES // 3


def _untrusted(told):
    raise ClusterError(f"{told} is not known")


NODE = {
    "node_id": "ab" * 14,
    "host": "h1",
    "address": "10.0.0.1",
    "is_head": True,
    "draining": False,
    "trouble": "",
    "versions": {"ray": "2.60.0"},
    "hardware": {"processor": "x86_64"},
    "computed": "c" * 64,
    "cores": 2,
    "cpus": 2.0,
    "clock_offset": 0.0,
    "clock_error": 0.1,
    "disk": [5, 10],
    "shared_memory": 1,
    "object_store": 1,
    "token": True,
    "agent": True,
}


def test_a_damaged_answer_of_a_cluster_is_a_readable_error(draw):
    from rich.console import Console

    console, refused = Console(quiet=True), 0
    for _ in range(TRIES):
        try:
            found = diagnosis_of([altered(NODE, draw), NODE], Expected()).as_data()
        except ClusterError:
            refused += 1
        else:
            show(found, console)
    assert refused > TRIES // 4
    for answer in (None, 5, {"nodes": []}, [None], [[]], [NODE, 7]):
        with pytest.raises(ClusterError):
            diagnosis_of(answer, Expected())
    show(diagnosis_of([{**NODE, "host": "[/red] [bold]"}], Expected()).as_data(), console)


YAML = {
    "recipe": (
        "about: a\nduration: 1ep\nbatch_size: 8\ntask: {lr: 0.1}\nalgorithms: {EMA: {}}\n",
        lambda path: read_recipe(str(path)),
        RecipeError,
    ),
    "faults": (
        "- {step: 3, action: kill, workers: 2}\n- {step: 4, action: slow, seconds: 2}\n",
        read_faults,
        FaultError,
    ),
    "launch": (
        "{provider: {type: local, head_ip: h}, available_node_types: {x: {min_workers: 1}}}\n",
        read_cluster_file,
        ClusterFileError,
    ),
}
HOSTILE = [
    "a0: &a0 [x]\n"
    + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(30)),
    "a: &a [*a]\n",
    "- " * 5000 + "x",
    "a: 2026-99-99\n",
    "? [a]\n: b\n",
    "!!python/object/apply:os.system [id]\n",
    "a: 0x" + "f" * 100_000,
    "\x00",
    "x" * 5_000_000,
]


@pytest.mark.parametrize("what", YAML)
def test_damaged_yaml_is_an_error_of_its_reader(tmp_path, draw, what):
    text, read, error = YAML[what]
    path = tmp_path / f"{what}.yaml"
    path.write_text(text)
    read(path)  # the control
    for _ in range(TRIES):
        path.write_bytes(damaged(text.encode(), draw))
        with suppress(error):
            read(path)
    for hostile in HOSTILE:
        path.write_text(hostile)
        with pytest.raises(error):
            read(path)


def test_small_yaml_with_aliases_is_plain_data():
    assert load_yaml("a: &a [1, 2]\nb: [*a, *a]\n") == {"a": [1, 2], "b": [[1, 2], [1, 2]]}
    for hostile in HOSTILE[:3]:
        with pytest.raises(YamlError, match=r"more than|deeply"):
            load_yaml(hostile)


def test_a_damaged_trace_is_an_error_that_names_the_line(tmp_path, draw):
    path = tmp_path / "trace.csv"
    content = b"0,add,a\n10,add,b\n2000,remove,a\n3000,add,c\n"
    path.write_bytes(content)
    assert len(changes(read_trace(path), most=2)) > 1  # the control
    for number in range(TRIES):
        path.write_bytes(damaged(content, draw) if number else b"9" * 400 + b",add,a\n")
        with suppress(TraceError):
            changes(read_trace(path), most=4)
    path.write_bytes(b"9" * 5000 + b",add,a\n")
    with pytest.raises(TraceError, match="line 1"):
        read_trace(path)


def test_a_damaged_notice_is_an_error_that_the_agent_reports(tmp_path, draw):
    path = tmp_path / "notice"
    for _ in range(TRIES):
        for read in (notices.ec2_action, notices.ec2_rebalance, notices.gce_preempted):
            body = b'{"action": "stop", "noticeTime": "2026-01-01T08:22:00Z", "time": "2026-01-01"}'
            try:
                found = read(200, damaged(body, draw).decode(errors="replace"), 1e9)
            except NoticeError:
                continue
            assert found is None or abs(found.deadline) < 1e12
        path.write_bytes(damaged(b"90 the rack is moved", draw))
        with suppress(NoticeError):
            NoticeFile(path, 30.0).look()
    for text in ("1e300", "inf", "nan", "-1", "9" * 5000):
        path.write_text(text)
        with pytest.raises(NoticeError):
            NoticeFile(path, 30.0).look()


def test_a_damaged_sweep_is_an_error_of_sweeps(tmp_path, draw):
    recipe = Recipe(duration="1ep", batch_size=8)
    trial = FinishedTrial(
        name="t1", purpose="search", recipe=recipe, seed=1, cost=1.0, quality=0.5, started=0.0,
        ended=1.0,
    )  # fmt: skip
    file = record(trial, tmp_path / "trials")
    content = file.read_bytes()
    assert read_trials(file) == [trial]  # the control
    for _ in range(TRIES // 3):
        file.write_bytes(damaged(content, draw))
        with suppress(PointError):
            read_trials(file)
    folder = SweepFolder(tmp_path)
    (tmp_path / "sweep").mkdir()
    told = {"event": "proposal", "time": 1.0, "name": "t1", "purpose": "search", "seed": 1}
    told["recipe"] = recipe.model_dump(mode="json")
    path = tmp_path / "sweep" / FILE_NAME
    for _ in range(TRIES):
        path.write_bytes(journal.line_of(altered(told, draw)))
        with suppress(JournalError, SweepError):
            folder.proposals()
    path.write_bytes(journal.line_of({**told, "name": "../../x"}))
    with pytest.raises(SweepError, match="trial name"):
        folder.proposals()
