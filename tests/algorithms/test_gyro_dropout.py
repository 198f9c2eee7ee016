"""Gyro dropout: few subnetworks, each trained for many steps, one round after the other."""

import itertools

import pydantic
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from raytrain_plus.algorithms import AspectError, AspectWarning, Step, Training, Weave
from raytrain_plus.algorithms.gyro_dropout import (
    GyroDropout,
    apply_gyro_dropout,
    choose_subnetworks,
    gyro_layers,
    subnetworks_of_round,
)
from tests.algorithms.tiny import CLOCK, PART, RANKS, TinyImages, TinyTokens, build, trained

SETTINGS = {"sigma": 6, "tau": 3, "p": 0.5, "interval": "2ba"}


def gyro(p=0.5, *, layers=1, seed=3):
    model = nn.Sequential(*(nn.Dropout(p) for _ in range(layers)))
    apply_gyro_dropout(model, seed)
    return model


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 30), st.integers(0, 2**63))
def test_all_subnetworks_are_trained_once_before_any_is_trained_again(tau, rounds, cycle, seed):
    sigma = tau * rounds
    turns = [subnetworks_of_round(cycle * rounds + i, sigma, tau, seed) for i in range(rounds)]
    assert sorted(itertools.chain(*turns)) == list(range(sigma))


def test_sample_i_trains_the_chosen_subnetwork():
    model = gyro()
    choose_subnetworks(model, [4, 9, 2])
    dropped = model(torch.ones(8, 5, 40))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    for i in range(8):
        assert torch.equal(dropped[i], dropped[i % 3])
    assert not torch.equal(dropped[0], dropped[1])
    # What a subnetwork drops depends neither on the other subnetworks nor on the batch.
    choose_subnetworks(model, [2, 7])
    torch.rand(3)
    assert torch.equal(model(torch.ones(1, 5, 40))[0], dropped[2])


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_fraction_p_is_dropped_and_the_mean_stays(p):
    model = gyro(p)
    choose_subnetworks(model, range(50))
    dropped = model(torch.ones(50, 2000))
    assert (dropped == 0).float().mean().item() == pytest.approx(p, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)


def test_layers_seeds_and_subnetworks_drop_different_features():
    x = torch.ones(2, 64)
    two = gyro(layers=2)
    choose_subnetworks(two, [0, 1])
    other = gyro(seed=4)
    choose_subnetworks(other, [0, 1])
    rows = [*two[0](x), *two[1](x), *other(x)]
    assert len({tuple(row.tolist()) for row in rows}) == 6


def test_evaluation_drops_nothing_and_undo_restores_plain_dropout():
    layer = nn.Dropout(0.3)
    surgery = apply_gyro_dropout(layer, 3)
    assert not apply_gyro_dropout(layer, 3).changed
    choose_subnetworks(layer, [1])
    x = torch.ones(2, 64)
    assert torch.equal(layer.eval()(x), x)
    assert not torch.equal(layer.train()(x), x)
    surgery.undo()
    assert type(layer) is nn.Dropout
    assert not {"pool", "place", "rate", "chosen", "drop"} & set(vars(layer))


def test_before_a_choice_it_is_plain_dropout():
    model, plain = gyro(0.4), nn.Dropout(0.4)
    x = torch.ones(4, 50)
    torch.manual_seed(0)
    expected = plain(x)
    torch.manual_seed(0)
    assert torch.equal(model(x), expected)


def test_only_kept_features_get_gradients():
    model = gyro()
    choose_subnetworks(model, [0, 1])
    x = torch.ones(4, 10, requires_grad=True)
    y = model(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_layers_that_drop_all_or_nothing_are_left_unchanged():
    model = nn.Sequential(nn.Dropout(0), nn.Dropout(1), nn.Dropout2d(0.5), nn.Dropout(0.5))
    assert list(apply_gyro_dropout(model, 0).changed) == ["3"]


def masks_of(number, rank, **settings):
    """Return which subnetworks the aspect chooses for a part."""
    weave = Weave([GyroDropout(**{**SETTINGS, **settings})])
    model = nn.Sequential(nn.Dropout(0.5))
    training = Training(
        model=model,
        optimizer=torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1),
        clock=CLOCK,
        seed=17,
    )
    with weave.around("fit", Step(training, 0)):
        step = Step(training, number)
        step.logical_rank, step.batch = rank, {"image": torch.zeros(PART, 2)}
        with weave.around("batch", step):
            (layer,) = gyro_layers(model)
            return layer.pool, layer.chosen


def test_a_round_lasts_its_interval_on_all_ranks():
    seen = {(n, r): masks_of(n, r) for n in range(6) for r in range(RANKS)}
    assert len({pool for pool, _ in seen.values()}) == 1
    for n in range(6):
        assert len({frozenset(seen[n, r][1]) for r in range(RANKS)}) == 1
    by_step = [frozenset(seen[n, 0][1]) for n in range(6)]
    assert by_step[0] == by_step[1]
    assert by_step[0] | by_step[2] == set(range(6))
    # The samples of a step use the subnetworks in turn, across its parts.
    turns = [seen[0, r][1][i % 3] for r in range(RANKS) for i in range(PART)]
    assert turns == [seen[0, 0][1][i % 3] for i in range(RANKS * PART)]


def test_by_default_each_subnetwork_is_trained_in_one_round_of_the_run():
    chosen = [masks_of(n, 0, interval=None)[1] for n in range(CLOCK.total_steps)]
    assert len({frozenset(c) for c in chosen}) == 2
    assert set(chosen[0]) == set(chosen[5])
    assert set(chosen[0]) | set(chosen[6]) == set(range(6))


def test_the_aspect_resets_the_choice_even_if_the_part_fails():
    loop, weave = build(TinyImages(), [GyroDropout(**SETTINGS)])
    (layer,) = gyro_layers(loop.replica.model)
    step = Step(loop.replica.training, 0)
    step.logical_rank, step.batch = 0, TinyImages.part(0, 0)
    with pytest.raises(KeyError), weave.around("batch", step):  # noqa: PT012 - it fails inside
        assert len(layer.chosen) == 3
        raise KeyError
    assert layer.chosen == ()


def test_training_with_it_differs_from_dropout_and_from_another_pool():
    losses = {
        name: trained(TinyImages(), aspects)[1]
        for name, aspects in {
            "plain": [],
            "gyro": [GyroDropout(**SETTINGS)],
            "again": [GyroDropout(**SETTINGS)],
            "other": [GyroDropout(**{**SETTINGS, "sigma": 9})],
        }.items()
    }
    assert losses["gyro"] == losses["again"]
    assert losses["gyro"] not in (losses["plain"], losses["other"])


def test_a_model_without_dropout_gets_a_warning_and_the_aspect_is_idle():
    with pytest.warns(AspectWarning, match="GyroDropout changed nothing in GPT"):
        _, weave = build(TinyTokens(), [GyroDropout()])
    step = Step(build(TinyTokens())[0].replica.training, 0)
    with weave.around("batch", step):
        pass
    assert weave.spent()["GyroDropout"]["idle"] == 1


def test_wrong_settings_are_refused():
    for wrong in ({"sigma": 10, "tau": 3}, {"p": 0}, {"p": 1}, {"tau": 0}, {"interval": "soon"}):
        with pytest.raises(pydantic.ValidationError):
            GyroDropout(**wrong)
    with pytest.raises(AspectError, match="tau=3 does not divide sigma=10"):
        subnetworks_of_round(0, 10, 3, 0)
    with pytest.raises(AspectError, match="p is 1"):
        apply_gyro_dropout(nn.Dropout(), 0, p=1)
