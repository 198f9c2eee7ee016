"""A group without progress is noticed in time, and the right worker is blamed."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.elastic.policy.hang_detection import Silence, Watch, all_wait, culprits
from raytrain_plus.elastic.protocol.messages import ElasticConfig, WorkerStatus


def watch(**config):
    made = Watch(ElasticConfig(**config))
    made.start_generation(100.0, warm=False)
    return made


def committed(made, start, durations):
    """Commit some steps one after the other; return the time of the last."""
    commits = [start]
    for duration in durations:
        commits.append(commits[-1] + duration)
    made.note_progress(commits[-1], commits)
    return commits[-1]


def test_the_first_step_of_a_run_has_its_own_deadline():
    made = watch(hang_deadline=3.0, first_step_deadline=60.0)
    assert made.deadline == 60.0
    assert not made.overdue(100.0 + 58.0)
    assert made.overdue(100.0 + 60.0)
    assert watch(hang_deadline=200.0, first_step_deadline=60.0).deadline == 200.0


@pytest.mark.parametrize(
    ("durations", "deadline"),
    [
        ([0.1] * 20, 5.0),  # a machine that is busy for a moment does not hang
        ([3.0] * 20, 12.0),
        ([3.0] * 20 + [500.0], 12.0),  # one slow step does not change the median
        ([1.0] * 200 + [3.0] * 200, 12.0),  # old steps are forgotten
    ],
)
def test_later_steps_have_a_deadline_of_four_usual_steps(durations, deadline):
    made = watch()
    committed(made, 110.0, durations)
    assert made.deadline == pytest.approx(deadline)


def test_a_restarted_coordinator_does_not_know_the_usual_step_yet():
    made = Watch(ElasticConfig(first_step_deadline=60.0))
    made.start_generation(100.0, warm=True)
    assert made.deadline == 60.0
    committed(made, 110.0, [0.1] * 20)
    assert made.deadline == 5.0


def test_a_configured_deadline_is_kept():
    made = watch(hang_deadline=2.5)
    now = committed(made, 110.0, [30.0] * 20)
    assert made.deadline == 2.5
    assert not made.overdue(now + 1.0)
    assert made.overdue(now + 2.5)


def test_any_progress_extends_the_deadline():
    made = watch(hang_deadline=10.0)
    now = committed(made, 110.0, [1.0])
    assert made.overdue(now + 10.0)
    made.note_progress(now + 9.0)
    assert not made.overdue(now + 10.0)
    assert made.overdue(now + 9.0 + 10.0)


def test_a_generation_starts_the_deadline_again():
    made = watch(hang_deadline=10.0)
    now = committed(made, 110.0, [1.0])
    made.start_generation(now + 50.0, warm=True)
    assert not made.overdue(now + 55.0)
    assert made.overdue(now + 60.0)


def test_the_deadline_of_a_newcomers_first_step_is_four_times_the_slowest_such_step():
    made = watch(first_step_deadline=120.0)
    now = committed(made, 107.0, [0.1] * 20)  # the first step took 7 s of its 9
    slowest = now - 100.0
    made.start_generation(now, warm=False)
    assert made.deadline == pytest.approx(4 * slowest)
    made.note_progress(now + 1.0, [now + 1.0])
    assert made.deadline == 5.0
    made.start_generation(now + 1.0, warm=True)
    assert made.deadline == 5.0  # no member is new, so no first step is slow
    made.start_generation(now + 2.0, warm=False)
    assert made.deadline == pytest.approx(4 * slowest)  # the slowest, not the last


def test_a_newcomers_deadline_is_at_most_the_first_step_deadline():
    made = watch(first_step_deadline=20.0)
    now = committed(made, 115.0, [0.1])
    made.start_generation(now, warm=False)
    assert made.deadline == 20.0


@given(st.floats(0.01, 1000))
def test_workers_are_asked_early_enough_to_answer_before_the_deadline(deadline):
    made = watch(hang_deadline=deadline)
    committed(made, 110.0, [0.001] * 3)
    assert 0 < made.answer_seconds <= min(1.0, made.deadline / 2)
    now = 200.0
    made.note_progress(now)
    assert not made.overdue(now + (made.deadline - made.answer_seconds) * 0.99)
    assert made.overdue(now + made.deadline)


def busy(age, phase="forward"):
    return WorkerStatus(phase=phase, waiting=False, age=age)


def waits(age):
    return WorkerStatus(phase="exchange", waiting=True, age=age)


@pytest.mark.parametrize(
    ("statuses", "blamed"),
    [
        ({"a": waits(9), "b": busy(9)}, {"b": "it was in forward for 9.0 s"}),
        ({"a": waits(9), "b": None}, {"b": "it did not answer"}),
        ({"a": None, "b": busy(7, "fetch")}, {"a": "did not", "b": "in fetch for 7.0 s"}),
        ({"a": waits(9), "b": busy(1)}, {}),  # it makes progress
        ({"a": waits(9), "b": waits(9)}, {}),
        ({}, {}),
    ],
)
def test_waiting_workers_are_innocent_and_busy_or_silent_ones_are_not(statuses, blamed):
    found = culprits(statuses, 5.0)
    assert found.keys() == blamed.keys()
    assert all(why in found[worker] for worker, why in blamed.items())


def test_a_hang_names_the_memory_that_was_in_use():
    status = replace(busy(9), memory="its process used 7.0 GiB")
    assert culprits({"a": status}, 5.0) == {
        "a": "it was in forward for 9.0 s (its process used 7.0 GiB)"
    }


STANDINGS = st.dictionaries(
    st.text(max_size=3),
    st.one_of(st.none(), st.builds(busy, st.floats(0, 20)), st.builds(waits, st.floats(0, 20))),
)


@given(STANDINGS, st.floats(0.1, 10))
def test_no_worker_is_blamed_if_all_wait_for_each_other(statuses, deadline):
    if all_wait(statuses, deadline):
        assert culprits(statuses, deadline) == {}
        assert all(s.phase == "exchange" and s.age > deadline for s in statuses.values())
    elif not culprits(statuses, deadline):
        assert any(s.age <= deadline for s in statuses.values())


def test_all_wait_only_if_each_waits_longer_than_the_deadline():
    assert all_wait({"a": waits(6), "b": waits(7)}, 5.0)
    assert not all_wait({"a": waits(6), "b": waits(4)}, 5.0)
    assert not all_wait({"a": waits(6), "b": None}, 5.0)
    assert not all_wait({"a": waits(6), "b": busy(6)}, 5.0)


def test_silent_workers_are_asked_early_and_answering_ones_have_the_whole_deadline():
    made = watch(hang_deadline=10.0)
    now = committed(made, 110.0, [1.0])
    assert not made.overdue(now + 8.5)
    assert made.overdue(now + 9.1)  # one second is left to wait for answers
    assert made.asked() is False
    assert not made.overdue(now + 9.9)
    assert made.overdue(now + 10.1)
    assert made.asked() is True
    made.note_progress(now + 11.0)
    assert made.overdue(now + 20.5)
    assert made.asked() is False


# -- silence


def nodes(workers, per_node=4):
    return {f"w{i}": f"n{i // per_node}" for i in range(workers)}


@pytest.mark.parametrize(("workers", "silent"), [(3, 1), (3, 2), (8, 2), (1000, 10)])
def test_few_silent_members_are_blamed_at_once(workers, silent):
    those = [f"w{i}" for i in range(silent)]
    assert Silence().blamed(those, nodes(workers), at_deadline=False) == those


@pytest.mark.parametrize(("workers", "silent"), [(3, 3), (8, 3), (1000, 11), (1000, 1000)])
def test_many_silent_members_are_not_blamed_at_first(workers, silent):
    those = [f"w{i}" for i in range(silent)]
    judge = Silence()
    assert [judge.blamed(those, nodes(workers), at_deadline=False) for _ in range(9)] == [[]] * 9
    assert [judge.blamed(those, nodes(workers)) for _ in range(2)] == [[], []]


def test_a_node_on_which_nobody_answers_for_long_is_blamed():
    here = nodes(400)
    lost = ["w4", "w5", "w6", "w7", "w9"]  # all of n1, and one of n2
    judge = Silence()
    verdicts = [judge.blamed(lost, here) for _ in range(6)]
    assert verdicts[:2] == [[], []]
    assert verdicts[2:5] == [["w4", "w5", "w6", "w7"]] * 3
    assert verdicts[5] == lost  # in the end all
    judge.clear()
    assert judge.blamed(lost, here) == []  # the group has made progress since


@given(st.integers(1, 2000), st.data())
def test_no_innocent_is_blamed_while_the_coordinator_is_slow(workers, data):
    """The coordinator hears few, other ones each time; then it hears all but the one that hangs."""
    here, judge = nodes(workers), Silence()
    guilty = data.draw(st.sampled_from(sorted(here)))
    most = max(2, workers // 100)
    for _ in range(data.draw(st.integers(0, 2))):
        heard = data.draw(st.sets(st.sampled_from(sorted(here)), max_size=5))
        silent = [worker for worker in here if worker not in heard]
        assert judge.blamed(silent, here) == (silent if len(silent) <= most else [])
    assert judge.blamed([guilty], here) == [guilty]
