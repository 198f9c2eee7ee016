"""Memory and arithmetic go wrong without an error, and the bits are those of a run without that."""

from raytrain_plus import Fault
from tests.end_to_end.runs import UNHURRIED, differences, train, undisturbed
from tests.end_to_end.tasks import Momentum


def test_what_was_committed_before_corruption_was_found_is_computed_again(storage):
    faults = [
        Fault(step=28, action="flip", victim=1),
        Fault(step=53, action="miscompute", victim=0),
    ]
    run = train(
        Momentum(),
        storage,
        logical_ranks=6,
        workers=(2, 3),
        wanted={1: 3},  # of two, nobody could say whose state is wrong
        faults=faults,
        check_every=5,
        audit_every=2,
        checkpoint_every="10ba",
        **UNHURRIED,
    )
    assert differences(run, undisturbed(Momentum, 6)) == []
    hit = [worker for fault in run.of("fault") for worker in fault["hit"]]
    assert [event["worker"] for event in run.of("worker", state="expelled")] == hit
    assert len(run.of("withdrawn")) == 2  # it was not found before anything came of it
    assert run.of("worker", state="lost") == []
