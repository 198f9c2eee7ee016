"""A newcomer proves that it computes the group's bits before it may join."""

from functools import partial

import pytest

from raytrain_plus import Fault
from tests.end_to_end.runs import UNHURRIED, at_once, differences, flaws, train, undisturbed
from tests.end_to_end.tasks import Odd, Plain

START_TIMEOUT = 30.0

# One worker starts the run; others come while it trains.
ALONE_AT_FIRST = [
    Fault(step=0, action="remove"),
    Fault(step=2, action="add"),
]
KILLED = [Fault(step=10, action="kill", phase="fetch")]

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def runs(storage_of_module):
    """Return three runs, by how the workers after the first misbehave."""

    def run(name, *ways, workers=(1, 2), faults=ALONE_AT_FIRST, **elastic):
        folder = storage_of_module / f"markers-{name}"
        folder.mkdir()
        return train(
            Odd(folder, "", *ways),
            storage_of_module,
            logical_ranks=4,
            workers=workers,
            faults=faults,
            wanted={3: workers[1]},
            **elastic,
        )

    undisturbed(Plain, 4)
    refused, admitted, alone = at_once(
        partial(run, "refused", "threads", "kernels", "error", **UNHURRIED),
        # If there were audits, each would blame a worker for the difference, step after step.
        partial(run, "admitted", "dies", "kernels", bitwise=False, audit_every=2, **UNHURRIED),
        partial(
            run,
            "alone",
            *["threads"] * 20,
            workers=(1, 1),
            faults=KILLED,
            start_timeout=START_TIMEOUT,
        ),
    )
    return {"refused": refused, "admitted": admitted, "alone": alone}


def members(run):
    return {name for event in run.of("generation") for name in event["members"]}


def test_workers_that_compute_differently_or_fail_are_refused_and_the_next_is_admitted(runs):
    run = runs["refused"]
    assert differences(run, undisturbed(Plain, 4)) == []
    assert flaws(run, ALONE_AT_FIRST) == []
    threads, kernels = run.of("worker", state="refused")
    assert "threads is 2, the group's is 1" in threads["reason"]
    assert "probe gradient" in kernels["reason"]
    assert "threads" not in kernels["reason"]
    (error,) = run.of("worker", state="failed")
    assert "this worker has no luck" in error["reason"]
    kept_out = {event["worker"] for event in (threads, kernels, error)}
    assert not kept_out & members(run)
    # The same checks admit a worker that is like the others.
    admitted = {event["worker"] for event in run.of("worker", state="ready")}
    assert len(admitted) == 2
    assert admitted == members(run)


def test_a_worker_that_computes_differently_is_admitted_if_allowed_and_the_run_is_marked(runs):
    run = runs["admitted"]
    assert not run.error
    assert run.sizes == {1, 2}
    (admitted,) = run.of("worker", state="admitted")
    assert "probe gradient" in admitted["reason"]
    assert admitted["worker"] in members(run)
    assert run.of("corruption") == []
    assert run.summary["bitwise"] is False
    assert run.of("end")[0]["bitwise"] is False
    assert undisturbed(Plain, 4).summary["bitwise"] is True
    # A newcomer that dies while it starts is replaced, and the group does not wait for it.
    (died,) = run.of("worker", state="failed")
    assert "died" in died["reason"]
    assert [event["step"] for event in run.of("step")] == list(range(1, 101))


def test_a_run_without_admissible_workers_says_why(runs):
    error = runs["alone"].error
    assert error.startswith(f"0 of at least 1 workers came up within {START_TIMEOUT:g} s.")
    assert "threads is 2, the group's is 1" in error
