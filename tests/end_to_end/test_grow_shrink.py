"""A group grows and shrinks at step boundaries while it trains, for each possible reason."""

import os
import signal
from datetime import datetime
from functools import partial

import pytest
import ray

from raytrain_plus import Fault
from raytrain_plus.observe import journal
from tests.end_to_end import nodes
from tests.end_to_end.runs import (
    UNHURRIED,
    Run,
    Script,
    at_step,
    coordinator,
    differences,
    flaws,
    program,
    train,
    undisturbed,
)
from tests.end_to_end.tasks import Occupant, Plain

START_ALONE = Fault(step=0, action="remove", workers=2)


def scale(workers):
    return lambda name: ray.get(coordinator(name).scale.remote(workers))


def scale_too_far(name):
    with pytest.raises(ValueError, match="between 1 and 3 workers, not 4"):
        scale(4)(name)


def test_scaling_up_does_not_stop_steps_until_the_newcomers_are_ready(storage):
    script = Script((at_step(5), scale_too_far), (at_step(5), scale(3)), (at_step(85), scale(1)))
    run = train(
        Plain(),
        storage,
        logical_ranks=6,
        workers=(1, 3),
        faults=[START_ALONE],
        wanted={1: 2, 6: 3, 80: 1, 86: -1},
        patience=0.5,
        director=script,
    )
    assert script.is_over
    assert differences(run, undisturbed(Plain, 6)) == []
    assert flaws(run, [START_ALONE]) == []
    assert run.sizes >= {1, 3}
    assert run.of("step", step=79)[0]["workers"] == 3
    assert run.of("step", step=100)[0]["workers"] == 1
    # The newcomers started during training: the group paused for a fraction of their start time.
    ready = [event["time"] for event in run.of("worker", state="ready")]
    grown = [
        e for e in run.of("generation") if {"joined"} & {cause["kind"] for cause in e["causes"]}
    ]
    meanwhile = [e for e in run.of("step") if ready[0] < e["time"] < ready[-1]]
    assert len(meanwhile) > 5
    assert max(event["pause_seconds"] for event in grown) < (ready[-1] - ready[0]) / 2
    # Workers left between two steps: no step was computed again.
    assert len(run.of("worker", state="left")) == 2
    assert run.of("worker", state="lost") == []


def test_a_run_grows_when_resources_become_free(storage):
    occupant = ray.remote(num_cpus=7.75)(Occupant).remote()
    ray.get(occupant.is_there.remote())
    seen = []
    script = Script(
        (at_step(10), lambda name: seen.append(ray.get(coordinator(name).status.remote()))),
        (at_step(10), lambda _: ray.kill(occupant)),
    )
    run = train(
        Plain(),
        storage,
        logical_ranks=6,
        workers=(1, 2),
        wanted={12: 2},
        director=script,
        **UNHURRIED,
    )
    assert differences(run, undisturbed(Plain, 6)) == []
    assert flaws(run, []) == []
    assert seen[0]["target"] == 2
    assert len(seen[0]["pids"]) == 1  # the other worker was requested, and could not be placed
    assert {event["workers"] for event in run.of("step") if event["step"] <= 10} == {1}
    assert run.of("step", step=100)[0]["workers"] == 2


def test_a_spare_replaces_a_worker_that_gets_notice(storage):
    seen = []

    def terminate(name):
        status = ray.get(coordinator(name).status.remote())
        seen.append(status)
        os.kill(status["pids"][status["workers"][0]], signal.SIGTERM)

    spare_is_ready = partial(ready, 3)
    run = train(
        Plain(),
        storage,
        logical_ranks=6,
        workers=(2, 2),
        wanted={1: 2, 12: 7, 14: 2},  # seven workers never join: two steps wait for their patience
        director=Script((lambda e: spare_is_ready(e) and at_step(10)(e), terminate)),
        spares=1,
        patience=4.0,
        hang_deadline=180.0,
    )
    assert differences(run, undisturbed(Plain, 6)) == []
    assert flaws(run, []) == []
    (status,) = seen
    (draining,) = run.of("worker", state="draining")
    assert (draining["worker"], draining["reason"]) == (status["workers"][0], "it got SIGTERM")
    (left,) = run.of("worker", state="left")
    assert left["worker"] == draining["worker"]
    assert run.of("worker", state="lost") == []
    # The spare was there before and is in the next group: the group was never smaller.
    spare = (status["pids"].keys() - set(status["workers"])).pop()
    first, second = run.of("generation")[:2]
    assert spare not in first["members"]
    assert spare in second["members"]
    assert run.sizes == {2}
    assert len(run.of("worker", state="ready")) in (3, 4)  # and another spare is requested


def ready(workers, events):
    return sum(e.get("state") == "ready" for e in events) >= workers


def test_nodes_join_drain_hang_and_die(storage):
    told = program(nodes.__name__, storage)
    run = Run(journal.read(storage / nodes.NAME), told["summary"])
    assert told["over"], [event for event in run.events if event["event"] != "step"]
    reference = undisturbed(Plain, nodes.LOGICAL_RANKS, nodes.STEPS)
    assert differences(run, reference) == []
    (first, *others) = run.of("worker", state="ready")
    drained, stopped, killed = others
    # A worker that Ray could not place starts as soon as there is a node for it.
    assert drained["node"] == told["nodes"]["drained"]
    assert stopped["node"] == killed["node"] == told["nodes"]["killed"]
    assert first["node"] not in told["nodes"].values()
    # A worker on a draining node leaves between two steps: its agent has passed the notice on.
    (left,) = run.of("worker", state="left")
    assert left["worker"] == drained["worker"]
    assert "watches node " + told["nodes"]["drained"] in told["agent"][0]
    assert "drains the node" in told["agent"][1]
    assert "EC2 will terminate it" in told["agent"][1]
    assert told["deadline"] == 1000 * datetime.fromisoformat(nodes.END).timestamp()
    # The doctor found all problems, and no others.
    problems = told["found"]["problems"]
    assert [one["what"] for one in problems if one["grave"]] == ["2 of 4 nodes have joined"]
    assert "it is being drained" in [one["what"] for one in problems]
    looked = [node for node in told["found"]["nodes"] if not node["draining"]]
    assert all(node["computed"] and abs(node["clock_offset"]) < 1 for node in looked)
    assert len(looked) == 1
    # A hanging worker alone on its node is ended, so that its place is free for another.
    hung, died = run.of("worker", state="lost")
    assert hung["worker"] == stopped["worker"]
    assert "did not answer" in hung["reason"]
    # A worker that dies with its node is lost at once, long before Ray notices the node's death.
    assert died["worker"] == killed["worker"]
    after = run.events[run.events.index(died) :]
    regrouped = next(event for event in after if event["event"] == "generation")
    assert regrouped["time"] - died["time"] < nodes.DEADLINE
    # The first worker was there all the time.
    assert all(first["worker"] in event["members"] for event in run.of("generation"))
    assert [event["step"] for event in run.of("step")] == list(range(1, nodes.STEPS + 1))
