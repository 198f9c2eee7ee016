"""A snapshot is the state of one moment, whatever happens to the replica afterwards."""

import pytest
import torch

from raytrain_plus.checkpoint.snapshot import CheckpointError, Snapshot
from tests.training.small_tasks import OPTIMIZERS, Noisy, Normed, Plain, Tied, loop_alone, run


def trained(task, steps=2):
    loop = loop_alone(task)
    run(loop, steps)
    return loop


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_keeps_the_state_while_training_goes_on(optimizer):
    loop = trained(Noisy(optimizer))
    before, tensors = loop.replica.digest(), loop.replica.tensors()
    expected = {name: tensor.clone() for name, tensor in tensors.items()}
    scalars = loop.replica.scalars()
    taken = Snapshot.of(loop.replica)
    assert (taken.step, taken.digest()) == (2, before)

    run(loop, 1)
    loop.replica.optimizer.param_groups[0]["lr"] = 0.5
    assert loop.replica.digest() != before  # the control: the state has changed
    assert taken.digest() == before
    assert taken.scalars == scalars != loop.replica.scalars()
    assert taken.tensors.keys() == expected.keys()
    assert all(torch.equal(taken.tensors[name], tensor) for name, tensor in expected.items())


def test_numbers_that_are_changed_in_place_are_copied_too():
    replica = trained(Plain()).replica
    replica.training.states["Mine"] = {"seen": [1, 2]}
    taken = Snapshot.of(replica)
    replica.training.states["Mine"]["seen"].append(3)
    assert taken.scalars["aspects"] == {"Mine/seen": [1, 2]}
    assert replica.scalars()["aspects"] == {"Mine/seen": [1, 2, 3]}


def test_no_memory_is_shared_with_the_replica():
    replica = trained(Normed("AdamW")).replica
    theirs = {t.untyped_storage().data_ptr() for t in replica.tensors().values()}
    taken = Snapshot.of(replica)
    ours = {
        t.untyped_storage().data_ptr() for t in (*taken.tensors.values(), *taken.model.values())
    }
    assert len(theirs) == len(ours) == len(taken.tensors)
    assert not theirs & ours


def test_the_memory_of_an_older_snapshot_is_reused_where_it_fits():
    loop = trained(Normed("AdamW"))
    older = Snapshot.of(loop.replica)
    places = {name: tensor.data_ptr() for name, tensor in older.tensors.items()}
    older.tensors["model/0.weight"] = torch.zeros(1)  # does not fit
    older.tensors["model/0.bias"] = older.tensors["model/0.bias"].double()  # nor does this one
    run(loop, 1)
    newer = Snapshot.of(loop.replica, reuse=older)
    assert newer.digest() == loop.replica.digest()
    moved = {name for name, tensor in newer.tensors.items() if tensor.data_ptr() != places[name]}
    assert moved == {"model/0.weight", "model/0.bias"}


def test_the_models_state_dict_is_separate_and_shares_the_copies():
    class WithATable(Tied):
        def model(self):
            model = super().model()
            model.register_buffer("table", torch.arange(3.0), persistent=False)
            return model

    replica = trained(WithATable()).replica
    taken = Snapshot.of(replica)
    assert taken.model.keys() == replica.model.state_dict().keys()
    assert taken.model["second.weight"] is taken.model["first.weight"]
    assert taken.model["first.weight"] is taken.tensors["model/first.weight"]
    assert {"model/table"} == {name for name in taken.rest if name.startswith("model/")}
    assert any(name.startswith("optimizer/") for name in taken.rest)


def test_values_that_only_the_state_dict_holds_are_copied_too():
    class Odd(Plain):
        class Model(torch.nn.Linear):
            def state_dict(self, *args, **kwargs):
                return {**super().state_dict(*args, **kwargs), "extra": self.extra}

        def model(self):
            model = self.Model(6, 3)
            model.extra = torch.ones(2)
            return model

    loop = trained(Odd())
    taken = Snapshot.of(loop.replica)
    loop.replica.model.extra += 1
    assert taken.model["extra"].tolist() == [1.0, 1.0]


def test_other_layouts_are_copied_element_by_element():
    replica = trained(Plain()).replica
    weight = replica.parameters["0.weight"]
    with torch.no_grad():
        weight.set_(weight.t().contiguous().t())
    assert not weight.is_contiguous()
    taken = Snapshot.of(replica)
    assert taken.tensors["model/0.weight"].is_contiguous()
    assert taken.digest() == replica.digest()


def test_a_partly_updated_replica_has_no_snapshot():
    replica = trained(Plain()).replica
    replica.torn = True
    with pytest.raises(CheckpointError, match="failed before its end"):
        Snapshot.of(replica)
