"""Flipped bits and wrong arithmetic are found before they are committed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.algorithms import EMA, Aspect
from raytrain_plus.training import corruption, exchange, reduction
from raytrain_plus.training.corruption import CorruptionError, Facts, Finding, judge
from tests.training.corrupted import FLIPS, RANKS, Group, flip_parameter, found
from tests.training.small_tasks import Noisy, Normed, everything
from tests.training.wires import NetworkDownError


@pytest.mark.parametrize("flipped", FLIPS)
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_flipped_bit_is_found_before_the_update_and_its_worker_is_named(workers, flipped):
    algorithms = (EMA(),)
    group = Group(workers, algorithms=algorithms, check_every=1)
    healthy = Group(workers, algorithms=algorithms)
    for g in (group, healthy):
        g.step()
        g.step()
    victim = group.members[-1]
    phases = len(victim.phases) // 2 - 1  # the last one is "update", after the comparison
    before = healthy.digests()
    whole = {k: v.clone() for k, v in healthy.members[0].loop.replica.tensors().items()}
    scalars = healthy.members[0].loop.replica.scalars()
    for phase in range(1, phases + 1):
        victim.strike = len(victim.phases) + phase, flipped
        assert found(group.step()) == ((workers - 1,), False, ()), victim.phases[-3:]
        assert [m.loop.replica.step for m in group.members] == [2] * workers
        assert group.digests()[:-1] == before[:-1]
        victim.loop.replica.load(whole, scalars)  # as if it were healed
        group.begin()
    healthy.step()
    assert found(group.step()) is None
    assert group.digests() == healthy.digests()


@pytest.mark.parametrize("flipped", FLIPS)
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_bit_flipped_between_two_steps_is_found_too(workers, flipped):
    group = Group(workers, algorithms=(EMA(),), check_every=1)
    group.step()
    flipped(group.members[0].loop)
    assert found(group.step()) == ((0,), False, ())
    group.begin()  # no worker healed it
    assert found(group.step()) == ((0,), False, ())


def test_without_checks_a_flipped_bit_is_committed():
    """The negative control."""
    group, healthy = Group(3), Group(3)
    for g in (group, healthy):
        g.step()
    flip_parameter(group.members[2].loop)
    for g in (group, healthy):
        assert found_nothing(g.step())
    assert group.digests() != healthy.digests()


def found_nothing(results):
    return not any(isinstance(r, CorruptionError) for r in results)


@pytest.mark.parametrize("workers", [2, 3])
def test_a_wrong_update_is_found_within_n_steps(workers):
    """The worker itself cannot notice it; the majority notices it, and two workers are a tie."""
    group = Group(workers, check_every=3)
    for _ in range(4):
        assert found(group.step()) is None
    flip_parameter(group.members[1].loop)
    found_at = []
    for _ in range(3):
        finding = found(group.step())
        if finding is not None:
            found_at.append((group.members[0].loop.replica.step, finding))
            break
    assert found_at == [(6, ((1,), False, ()) if workers == 3 else ((), True, ()))]


def test_a_step_that_corruption_ended_changes_no_state_and_is_not_salvaged():
    group = Group(2, check_every=1)
    group.step()
    flip_parameter(group.members[1].loop)
    states = [everything(member.loop) for member in group.members]
    found(group.step())
    assert [everything(member.loop) for member in group.members] == states
    for member in group.members:
        member.loop.end_generation()
        assert not member.loop._salvaged


class Wrong(Noisy):
    """Adds an error to the results of one worker."""

    error = 0.0

    def forward(self, model, batch):
        return model(batch["x"]) * (1 + self.error)

    def model(self):
        return Normed.model(self)


class EachLeaf(Aspect):
    def backward(self, _):
        yield


@pytest.mark.parametrize("algorithms", [(), (EachLeaf(),)])
@pytest.mark.parametrize("workers", [2, 3])
def test_an_audit_of_a_wrong_part_finds_it(workers, algorithms):
    group = Group(workers, Wrong, algorithms, audit_every=1)
    wrong = workers - 1
    group.step()
    group.members[wrong].task.error = 1e-3
    for step in range(1, 30):
        rank, auditor = group.members[0].loop.guard.audit_of(step)
        owner = next(i for i, ranks in enumerate(group.cuts) if rank in ranks)
        assert auditor != owner
        before = group.digests()
        finding = found(group.step())
        if wrong not in (owner, auditor):
            assert finding is None
            continue
        assert finding == ((), False, tuple(sorted((owner, auditor))))
        assert group.digests() == before
        return
    raise AssertionError("the audit never met the wrong worker")


def test_without_audits_wrong_arithmetic_is_not_found():
    """The negative control: all workers use the wrong sum, so that their states are equal."""
    group = Group(2, Wrong, check_every=1)
    group.members[1].task.error = 1e-3
    for _ in range(8):
        assert found(group.step()) is None


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_that_need_not_compute_the_same_are_not_compared(workers):
    """Each worker still checks its own memory."""
    group = Group(workers, Wrong, alike=False, check_every=1, audit_every=1)
    group.members[-1].task.error = 1e-3
    flip_parameter(group.members[0].loop)
    group.members[0].loop.guard.note()  # its state differs on purpose
    for step in range(4):
        assert group.members[0].loop.guard.audit_of(step) is None
        assert found(group.step()) is None
    assert len(set(group.digests())) == 2
    flip_parameter(group.members[1].loop)
    assert found(group.step()) == ((1,), False, ())


def test_one_worker_audits_itself():
    group = Group(1, Wrong, audit_every=1)
    assert group.members[0].loop.guard.audit_of(0)[1] == 0
    assert found(group.step()) is None

    def once(loop):
        loop._task.error = 1e-3

    worker = group.members[0]
    worker.strike = len(worker.phases) + len(worker.phases) - 4, once  # the audit's own forward
    assert found(group.step()) == ((), False, (0,))


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("algorithms", [(), (EachLeaf(),)])
@pytest.mark.parametrize("overlap", [False, True])
def test_audits_and_checks_change_no_state(workers, algorithms, overlap, monkeypatch):
    if overlap:
        monkeypatch.setattr(exchange, "_OVERLAP_BYTES", 0)
        monkeypatch.setattr(reduction, "_BUCKET_BYTES", 1)
    watched = Group(workers, algorithms=algorithms, check_every=1, audit_every=1)
    plain = Group(workers, algorithms=algorithms)
    audited = set()
    for step in range(14):
        audited.add(watched.members[0].loop.guard.audit_of(step)[0])
        assert found(watched.step()) is None
        plain.step()
    assert watched.digests() == plain.digests()
    assert audited == set(range(RANKS))
    for member in (*watched.members, *plain.members):
        member.loop.end_generation()


def test_audits_are_drawn_alike_from_seed_and_step():
    loops = [m.loop for m in Group(3, audit_every=5).members]
    drawn = [[loop.guard.audit_of(step) for step in range(200)] for loop in loops]
    assert drawn[0] == drawn[1] == drawn[2]
    assert all((audit is None) == bool(step % 5) for step, audit in enumerate(drawn[0]))
    assert {audit[0] for audit in drawn[0] if audit} == set(range(RANKS))
    assert {audit[1] for audit in drawn[0] if audit} == {0, 1, 2}


def test_a_peer_lost_during_a_comparison_changes_no_state(monkeypatch):
    group = Group(2, check_every=1)
    states = [everything(member.loop) for member in group.members]

    def lost(wire, *_):
        raise NetworkDownError(wire.index)

    monkeypatch.setattr(corruption, "gather", lost)
    with pytest.raises(NetworkDownError):
        group.step()
    assert [everything(member.loop) for member in group.members] == states


@given(st.data())
def test_a_majority_is_right(data):
    workers = data.draw(st.integers(1, 9))
    wrong = data.draw(st.sets(st.integers(0, workers - 1), max_size=(workers - 1) // 2))
    facts = [Facts(state=7 if i not in wrong else 100 + i) for i in range(workers)]
    finding = judge(facts)
    if not wrong:
        assert finding is None
    else:
        assert (finding.accused, finding.tie) == (tuple(sorted(wrong)), False)


@pytest.mark.parametrize(
    ("facts", "accused", "suspects", "tie"),
    [
        ([Facts(1), Facts(2)], (), (), True),
        ([Facts(1), Facts(2, changed=True)], (1,), (), False),
        ([Facts(1, changed=True), Facts(1, changed=True)], (0, 1), (), False),
        ([Facts(1), Facts(1), Facts(2), Facts(2)], (), (), True),
        ([Facts(1), Facts(1), Facts(2), Facts(3, changed=True)], (2, 3), (), False),
        ([Facts(leaf=1), Facts(), Facts(second=2)], (), (0, 2), False),
        ([Facts(leaf=1, second=2)], (), (0,), False),
        ([Facts(1, changed=True, leaf=1), Facts(1, second=2)], (0,), (0, 1), False),
    ],
)
def test_the_verdict_for_given_facts(facts, accused, suspects, tie):
    finding = judge(facts)
    assert isinstance(finding, Finding)
    assert (finding.accused, finding.suspects, finding.tie) == (accused, suspects, tie)
    assert all(str(place) in finding.why for place in (*accused, *suspects))


@pytest.mark.parametrize("changed", [[True, True], [True, False, False]])
def test_what_changes_the_memory_of_all_workers_is_looked_for_in_the_task(changed):
    finding = judge([Facts(1, changed=one) for one in changed])
    assert ("a thread or a callback of the task" in finding.why) is all(changed)


@pytest.mark.parametrize(
    "facts",
    [
        [Facts(1), Facts(1)],
        [Facts(leaf=3), Facts(second=3)],
        [Facts(leaf=3), Facts()],  # no worker computed it a second time
        [Facts(), Facts(second=3)],  # the owner has salvaged it
    ],
)
def test_equal_facts_accuse_no_worker(facts):
    assert judge(facts) is None


@given(
    st.integers(0, 2**64 - 1),
    st.booleans(),
    st.none() | st.integers(0, 2**64 - 1),
    st.none() | st.integers(0, 2**64 - 1),
)
def test_facts_arrive_as_they_were_sent(state, changed, leaf, second):
    facts = Facts(state, changed, leaf, second)
    assert corruption._unpacked(corruption._packed(facts)) == facts


def test_settings_below_zero_are_refused():
    with pytest.raises(ValueError, match="check_every is -1; give a number of steps, or 0"):
        Group(1, check_every=-1)
