"""If two coordinators believe that they lead a run, the later one leads it."""

import pytest

from raytrain_plus.elastic.coordinator.run_log import RunLog
from raytrain_plus.observe.journal import Journal, read
from raytrain_plus.storage import ownership
from raytrain_plus.storage.fencing import Fence, FencedError


def test_the_earlier_of_two_coordinators_neither_writes_nor_plans_any_more(tmp_path):
    first, second = Fence(tmp_path, "claim"), Fence(tmp_path, "claim")
    first.check()  # no coordinator leads yet
    first.acquire()
    first.check()
    run_log = RunLog(Journal(tmp_path), allowed=first.check)
    run_log.note("worker", worker="w0", state="ready")
    second.acquire()
    with pytest.raises(FencedError, match="another coordinator leads") as told:
        run_log.note("worker", worker="w0", state="lost")
    assert told.value.replaced
    second.check()
    assert [event["state"] for event in read(tmp_path)] == ["ready"]
    first.release()
    second.release()


def test_a_run_that_was_taken_over_is_lost_for_every_coordinator_of_its_driver(tmp_path):
    mine, theirs = Fence(tmp_path, "mine"), Fence(tmp_path, "theirs", address="10.0.0.9:6379")
    mine.acquire()
    mine.release()
    held = ownership.acquire(tmp_path, "id", "10.0.0.9:6379", 1)
    for _ in range(2):  # also when Ray starts it again
        with pytest.raises(FencedError, match=r"taken over.*Ray at 10\.0\.0\.9:6379") as told:
            mine.check()
        assert not told.value.replaced
        with pytest.raises(FencedError, match="taken over"):
            Fence(tmp_path, "mine").acquire()
    with pytest.raises(FencedError, match="taken over"):
        theirs.acquire()  # and no other process has the new owner's claim
    follower = Fence(tmp_path, held.owner.claim)
    follower.acquire()
    follower.check()
    follower.release()
    with held:
        pass


def test_a_run_whose_folder_was_removed_goes_on_and_one_in_its_place_fences_it(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    fence = Fence(folder, "first")
    fence.acquire()
    for path in (folder / "owners").iterdir():
        path.unlink()
    fence.check()
    other = Fence(folder, "second")
    other.acquire()
    with pytest.raises(FencedError, match="taken over"):
        fence.check()
    fence.release()
    other.release()
