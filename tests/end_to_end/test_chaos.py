"""Twelve random schedules of faults, in three runs, each compared with the undisturbed run.

`raytrain-plus chaos` runs any number of them.
"""

from functools import partial

import pytest

from raytrain_plus.chaos.schedules import USUAL_KINDS
from tests.end_to_end.chaos import STEPS, Case, verdict
from tests.end_to_end.runs import at_once, undisturbed
from tests.end_to_end.tasks import AdamW, Momentum, Wide

USUAL = Case(Momentum, 6, 3)
CASES = {
    USUAL: range(24, 28),
    Case(AdamW, 8, 2): range(228, 232),
    Case(Wide, 4, 3): range(200, 204),
}

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def verdicts(storage_of_module):
    references = dict.fromkeys((case.task, case.logical_ranks) for case in CASES)
    at_once(*[partial(undisturbed, *key, steps=4 * STEPS) for key in references])
    judged = at_once(*[partial(verdict, *item, storage_of_module) for item in CASES.items()])
    return dict(zip(CASES, judged, strict=True))


@pytest.mark.slow
def test_four_schedules_change_no_bit_and_lose_no_step(storage_of_module):
    assert verdict(USUAL, CASES[USUAL], storage_of_module) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_schedule_changes_bits_or_loses_steps(case, verdicts):
    assert verdicts[case] == []


def test_the_schedules_have_every_kind_of_fault():
    faults = [fault for case, seeds in CASES.items() for fault in case.schedule(seeds).faults]
    assert {fault.action for fault in faults} == set(USUAL_KINDS)
