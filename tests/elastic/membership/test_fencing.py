"""Ray may start a coordinator while the one before still lives; only the last one counts."""

import pytest

from raytrain_plus.elastic.membership.fencing import Fence, FencedError
from raytrain_plus.elastic.records.chronicle import Chronicle
from raytrain_plus.observe.journal import Journal, read


def test_of_two_coordinators_the_first_neither_writes_nor_plans_any_more(tmp_path):
    first, second = Fence(tmp_path), Fence(tmp_path)
    first.check()  # nobody leads yet
    first.take()
    first.check()
    chronicle = Chronicle(Journal(tmp_path), allowed=first.check)
    chronicle.note("worker", worker="w0", state="ready")
    second.take()
    with pytest.raises(FencedError):
        chronicle.note("worker", worker="w0", state="lost")
    second.check()
    assert [event["state"] for event in read(tmp_path)] == ["ready"]
