"""Training from object storage: the bits stay the same when store, workers and nodes fail."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from raytrain_plus import Fault, Mixture, Stream, StreamWriter
from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.configure import ConfigError
from raytrain_plus.observe import journal
from raytrain_plus.storage.store import Store
from raytrain_plus.streams.check import inspect_stream
from tests.end_to_end import fetching
from tests.end_to_end.runs import UNHURRIED, Run, at_once, differences, flaws, program, train
from tests.end_to_end.tasks import HELD_OUT, ROWS, Streamed, pictures
from tests.streams.s3_server import KEY, SECRET, proxy_of
from tests.streams.s3_server import Fault as StoreFault

V = 4
STEPS = 100
EPOCHS = 10
STEPS_PER_EPOCH = ROWS // V // 8

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def bucket(server):
    """Return a bucket with the training data in some two hundred files, and evaluation data."""
    name = server.fresh_bucket()
    for folder, rows in (
        ("train", pictures().slice(0, ROWS)),
        ("held_out", pictures().slice(ROWS)),
    ):
        with StreamWriter(
            f"s3://{name}/{folder}", file_size=1400, storage_options=server.options()
        ) as writer:
            writer.write(rows)
    return name


@pytest.fixture(scope="module")
def streamed(bucket, server, tmp_path_factory):
    """Return a function that makes the task, with a proxy and its own cache."""

    def make(cache, url=None, **settings):
        def stream(folder, **more):
            return Stream(
                f"s3://{bucket}/{folder}",
                storage_options=server.options(url),
                cache=tmp_path_factory.getbasetemp() / f"cache-{cache}",
                **{"window": 2, **settings, **more},
            )

        return Streamed(stream("train"), stream("held_out"))

    return make


@pytest.fixture(scope="module")
def undisturbed(streamed, storage_of_module):
    def run(**settings):
        return train(
            streamed("undisturbed", **settings), storage_of_module, logical_ranks=V, steps=STEPS
        )

    return run()


def kill(step, phase, victim):
    return Fault(step=step, action="kill", phase=phase, victim=victim)


def test_the_bits_stay_when_fetching_workers_die_and_the_store_fails(
    streamed, undisturbed, server, storage
):
    faults = [kill(10, "fetch", 0), kill(40, "backward", 1), kill(70, "fetch", 2)]
    wanted = {1: 3, 10: 2, 40: 2, 70: 2}
    with proxy_of(server) as proxy:
        proxy.faults += [
            StoreFault("status", status=503, times=10),
            StoreFault("flip", times=3),
            StoreFault("reset", times=4),
            StoreFault("truncate", times=4),
            StoreFault("status", status=404, times=4),
        ]
        run = train(
            streamed("disturbed", proxy.url),
            storage,
            logical_ranks=V,
            workers=(1, 3),
            steps=STEPS,
            faults=faults,
            wanted=wanted,
            **UNHURRIED,
        )
        assert all(fault.struck == fault.times for fault in proxy.faults)
    assert differences(run, undisturbed) == []
    assert flaws(run, faults) == []
    assert {2, 3} <= run.sizes


def test_a_permanent_failure_of_the_store_ends_the_run_with_one_clear_error(
    streamed, server, storage
):
    with proxy_of(server) as proxy:
        proxy.faults.append(StoreFault("status", status=503, times=None, pattern="part-00005"))
        run = train(
            streamed("failing", proxy.url, deadline=3.0),
            storage,
            logical_ranks=V,
            workers=(1, 2),
            steps=STEPS,
        )
    assert "part-00005" in run.error
    assert "could not be reached" in run.error
    assert run.of("end", state="failed")
    steps = run.summary["steps"]
    assert [event["step"] for event in run.of("step")] == list(range(1, steps + 1))
    assert run.model or not steps


@pytest.mark.slow
def test_a_slow_store_is_not_a_hang(streamed, undisturbed, server, storage):
    with proxy_of(server) as proxy:
        proxy.faults.append(StoreFault("stall", times=3, pattern="part-00006"))
        run = train(
            streamed("slow", proxy.url, deadline=60.0),
            storage,
            logical_ranks=V,
            workers=(2, 2),
            steps=STEPS,
            hang_deadline=3.0,
        )
        assert proxy.faults[0].struck == 3
    assert differences(run, undisturbed) == []
    assert not run.of("worker", state="lost")


@pytest.mark.slow
def test_ten_epochs_with_resizes_and_a_cache_of_a_tenth(streamed, bucket, server, storage):
    raw = inspect_stream(f"s3://{bucket}/train", server.options())["raw_bytes"]
    steps = EPOCHS * STEPS_PER_EPOCH
    resizes = [
        Fault(step=step, action=action, workers=1)
        for step, action in zip(
            range(20, steps, 40),
            ["add", "add", "remove", "add", "remove", "remove", "add"],
            strict=False,
        )
    ]

    def run(cache, workers, faults, limit):
        task = streamed(cache, window=1, cache_limit=limit)
        return train(
            task, storage, logical_ranks=V, workers=workers, steps=steps, faults=faults, **UNHURRIED
        )

    calm, resized = at_once(
        partial(run, "large", (1, 1), [], "10MB"),
        partial(
            run, "small", (1, 3), [Fault(step=0, action="remove", workers=2), *resizes], raw // 10
        ),
    )
    assert differences(resized, calm) == []
    assert len(resized.sizes) > 1
    assert resized.summary["steps"] == steps


def test_a_resume_with_another_order_of_data_is_refused_and_names_the_change(streamed, storage):
    def run(duration=20, **settings):
        return train(
            streamed("resumed", **settings),
            storage,
            logical_ranks=V,
            steps=duration,
            name="resumed",
            resume=bool(settings),
        )

    run()
    with pytest.raises(ConfigError, match="data window: was 2, is 3"):
        run(window=3)
    with pytest.raises(ConfigError, match="data shuffle: was True, is False"):
        run(shuffle=False)
    before = journal.read(storage / "resumed")
    assert [event["event"] for event in before].count("run") == 1


@pytest.mark.slow
def test_the_bits_stay_when_a_fetching_node_dies(bucket, server, storage, tmp_path):
    limit = inspect_stream(f"s3://{bucket}/train", server.options())["raw_bytes"] // 10
    told = program(fetching.__name__, storage, server.url, bucket, limit)
    run = Run(journal.read(storage / fetching.NAME), told["summary"])
    assert told["over"], [event for event in run.events if event["event"] != "step"]
    calm = train(
        fetching.task(bucket, server.options(), tmp_path, limit),
        storage,
        logical_ranks=V,
        steps=fetching.STEPS,
    )
    assert differences(run, calm) == []
    (lost,) = run.of("worker", state="lost")
    ready = {event["worker"]: event["node"] for event in run.of("worker", state="ready")}
    assert ready[lost["worker"]] == told["nodes"]["killed"]
    assert [event["step"] for event in run.of("step")] == list(range(1, fetching.STEPS + 1))


@pytest.mark.slow
def test_a_mixture_whose_shares_change_keeps_its_bits_through_a_kill(streamed, storage):
    def mixture(cache, changes):
        task = streamed(cache)
        both = {"large": task.data(), "small": task.evaluation_data()}
        weights = {"large": 3, "small": 1}
        return Streamed(Mixture(both, weights, changes=changes, block=16), task.evaluation_data())

    def run(cache, workers, changes, **disturbances):
        return train(
            mixture(cache, changes),
            storage,
            logical_ranks=V,
            workers=workers,
            steps=60,
            **disturbances,
        )

    later = {30: {"large": 1, "small": 1}}
    calm = run("mixed", (1, 1), later)
    fault = kill(29, "backward", 0)
    disturbed = run(
        "mixed-again", (1, 2), later, faults=[fault], wanted={1: 2, 29: 1, 31: 2}, **UNHURRIED
    )
    assert differences(disturbed, calm) == []
    assert flaws(disturbed, [fault]) == []
    constant = run("mixed", (1, 1), {})  # the control: before the change they are equal
    steps = [[event["loss_hex"] for event in one.of("step")] for one in (calm, constant)]
    assert steps[0][:30] == steps[1][:30]
    assert steps[0][30:] != steps[1][30:]


def test_the_command_line_trains_from_s3_and_keeps_its_state_there(bucket, server, tmp_path):
    (tmp_path / "task.py").write_text(
        "from tests.end_to_end.tasks import Momentum\n"
        "class Plain(Momentum):\n"
        "    def data(self): return None\n"
        "    def evaluation_data(self): return None\n"
        "    def metrics(self): return {}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "raytrain_plus", "train", "task.py:Plain", "--json",
         "--data", f"s3://{bucket}/train", "--logical-ranks", "4", "--batch-size", "32",
         "--duration", "20ba", "--storage", "runs", "--workers", "2",
         "--checkpoint-storage", f"s3://{bucket}/kept", "--checkpoint-every", "8ba"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(Path.cwd()),
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": server.url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "RAY_ADDRESS": "local",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["steps"] == 20
    assert told["checkpoint"] == f"s3://{bucket}/kept/{told['run']}/checkpoint_00000020"
    last = checkpointer.verify(Store(told["checkpoint"], server.options()))
    assert (last.step, last.digest) == (20, told["digest"])
    assert HELD_OUT  # none of it was read
    assert list((tmp_path / "cache" / "raytrain_plus" / "streams").glob("*.cached"))
