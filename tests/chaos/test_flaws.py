"""A disturbed run that has lost steps or workers is flawed, even if its bits are equal."""

import copy

from raytrain_plus import Fault
from raytrain_plus.chaos.flaws import broken_promises, flaws
from tests.chaos.made_up_run import KILL, generation, healthy, step, worker


def test_a_healthy_run_has_no_flaws():
    assert flaws(healthy(), [KILL]) == []
    assert broken_promises(healthy()) == []


def test_a_step_that_is_missing_or_there_twice_is_noticed():
    missing, twice = healthy(), healthy()
    del missing[9]
    twice.insert(9, copy.deepcopy(twice[9]))
    assert "missing" in broken_promises(missing)[0]
    assert "repeated" in broken_promises(twice)[0]


def test_a_committed_step_that_is_lost_is_noticed_unless_no_worker_survived():
    events = healthy()
    events[8] = generation(2, 1, "w0")
    assert "survived step 3, and the run continued at 1" in broken_promises(events)[0]
    events[7]["hit"] = ["w0", "w1"]
    events.insert(6, worker("w0", "lost"))
    assert flaws(events, [KILL]) == []


def test_a_left_out_survivor_is_noticed_unless_it_drains():
    events = healthy()
    events[11]["members"] = ["w2"]
    assert "['w0'] survived, but ['w2'] continued without" in broken_promises(events)[0]
    events.insert(10, worker("w0", "draining"))
    assert flaws(events, [KILL]) == []


def test_a_resume_has_no_survivors():
    events = healthy()
    later = [generation(4, 2, "w3"), *(step(n, 1) for n in (7, 8))]
    assert "['w0', 'w2'] survived step 6" in broken_promises([*events[:15], *later])[0]
    assert broken_promises([*events[:15], {"event": "run"}, *later]) == []


def test_a_worker_that_was_lost_without_a_fault_is_noticed():
    events = healthy()
    events[7]["hit"] = []
    assert "no fault had hit: ['w1']" in flaws(events, [KILL])[0]
    assert broken_promises(events) == []  # machines may be lost while a task is tested


def test_a_worker_that_comes_up_twice_is_noticed():
    assert "more than once: ['w0']" in flaws([*healthy(), worker("w0", "ready")], [KILL])[0]


def test_a_fault_that_did_not_happen_is_noticed():
    never = Fault(step=5, action="kill", phase="gather")
    assert "did not happen: kill in gather at step 5" in flaws(healthy(), [KILL, never])[0]


def test_a_fault_on_a_group_that_forms_again_may_miss_one_that_starts_again():
    never = Fault(step=4, action="stop", phase="heal")
    assert "did not happen: stop in heal at step 4" in flaws(healthy(), [KILL, never])[0]
    again = healthy()
    everyone = {event["worker"] for event in again if event["event"] == "worker"}
    again += [worker(name, "lost") for name in sorted(everyone)]
    again.append(generation(9, 0, "w9"))
    assert not [flaw for flaw in flaws(again, [KILL, never]) if "did not happen" in flaw]
