"""Memory and arithmetic are wrong without an error; the bits are those of an undisturbed run."""

from raytrain_plus import Fault
from tests.end_to_end.runs import UNHURRIED, differences, train, undisturbed
from tests.end_to_end.tasks import Momentum


def test_steps_committed_before_corruption_was_found_are_computed_again(storage):
    faults = [
        Fault(step=28, action="flip", victim=1),
        Fault(step=53, action="miscompute", victim=0),
    ]
    run = train(
        Momentum(),
        storage,
        logical_ranks=6,
        workers=(2, 3),
        wanted={1: 3},  # with two workers it is unknown whose state is wrong
        faults=faults,
        check_every=5,
        audit_every=2,
        checkpoint_every="10ba",
        **UNHURRIED,
    )
    assert differences(run, undisturbed(Momentum, 6)) == []
    hit = [worker for fault in run.of("fault") for worker in fault["hit"]]
    assert [event["worker"] for event in run.of("worker", state="evicted")] == hit
    assert len(run.of("withdrawn")) == 2  # it was found only after it had an effect
    assert run.of("worker", state="lost") == []
