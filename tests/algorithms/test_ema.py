"""EMA: the average follows the formula, is evaluated and exported, and does not change training."""

import pydantic
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from raytrain_plus.algorithms import Aspect, AspectError, Step, Weave
from raytrain_plus.algorithms.ema import EMA, smoothing_of, update_ema
from raytrain_plus.algorithms.swa import SWA
from raytrain_plus.algorithms.weight_averaging import averaged, begin_average, load_average
from tests.algorithms.tiny import RANKS, TinyImages, alone, build, trained


def values(model):
    """Return copies of all parameters and floating buffers by name."""
    found = dict(model.named_parameters()) | dict(model.named_buffers())
    return {n: t.detach().clone() for n, t in found.items() if t.is_floating_point()}


def run(loop, steps):
    """Run steps; return the values after each step."""
    trajectory = []
    for _ in range(steps):
        loop.run_step([TinyImages.part(loop.replica.step, r) for r in range(RANKS)])
        trajectory.append(values(loop.replica.model))
    return trajectory


def evaluated(loop, weave):
    """Return the values that an evaluation sees."""
    step = Step(loop.replica.training, loop.replica.step)
    with weave.around("evaluate", step):
        return values(loop.replica.model)


def naive(trajectory, smoothing):
    average = {n: v.double() for n, v in trajectory[0].items()}
    for point in trajectory[1:]:
        for name, value in point.items():
            average[name] = smoothing * average[name] + (1 - smoothing) * value.double()
    return {n: v.float() for n, v in average.items()}


def begun(*aspects):
    loop, weave = build(TinyImages(), aspects)
    loop.begin_generation([range(RANKS)], alone())
    return loop, weave


@pytest.mark.parametrize(
    ("settings", "smoothing", "taken"),
    [
        ({"half_life": "3ba"}, 0.5 ** (1 / 3), [0, 1, 2, 3, 4, 5]),
        ({"half_life": "4ba", "update_interval": "2ba", "start": "0.25dur"}, 0.5**0.5, [2, 4]),
        ({"smoothing": 0.9, "start": "2ba"}, 0.9, [1, 2, 3, 4, 5]),
    ],
)
def test_the_evaluated_weights_are_the_average_of_the_formula(settings, smoothing, taken):
    loop, weave = begun(EMA(**settings))
    trajectory = run(loop, 6)
    expected = naive([trajectory[i] for i in taken], smoothing)
    torch.testing.assert_close(evaluated(loop, weave), expected)
    with pytest.raises(AssertionError):  # the control: not the live values
        torch.testing.assert_close(evaluated(loop, weave), trajectory[-1])
    assert values(loop.replica.model).keys() == expected.keys()


def test_training_is_the_same_as_without_it_also_after_evaluations():
    plain = run(begun()[0], 4)
    loop, weave = begun(EMA(half_life="2ba"))
    for expected in plain:
        (seen,) = run(loop, 1)
        evaluated(loop, weave)
        assert all(torch.equal(seen[n], v) for n, v in expected.items())


def test_before_the_start_the_live_values_are_evaluated_and_exported():
    loop, weave = begun(EMA(start="0.5dur"))
    live = run(loop, 3)[-1]
    seen = evaluated(loop, weave)
    assert all(torch.equal(seen[n], v) for n, v in live.items())
    assert weave.costs["EMA"].idle == 4  # three updates and an evaluation
    exported = values(loop.replica.undo_fit())
    assert all(torch.equal(exported[n], v) for n, v in live.items())


def test_the_exported_model_holds_the_average():
    loop, weave = begun(EMA(half_life="2ba"))
    run(loop, 3)
    average = evaluated(loop, weave)
    exported = values(loop.replica.undo_fit())
    assert all(torch.equal(exported[n], v) for n, v in average.items())


def test_an_evaluation_that_fails_leaves_the_live_values():
    loop, weave = begun(EMA(half_life="2ba"))
    live = run(loop, 3)[-1]
    with (
        pytest.raises(RuntimeError, match="lost"),
        weave.around("evaluate", Step(loop.replica.training, 3)),
    ):
        raise RuntimeError("lost")
    now = values(loop.replica.model)
    assert all(torch.equal(now[n], v) for n, v in live.items())


def test_the_average_is_part_of_the_replica():
    aspect = EMA(half_life="2ba", start="2ba")
    loop, _ = begun(aspect)
    run(loop, 3)
    newcomer, _ = begun(aspect)
    run(newcomer, 1)
    state = {n: t.clone() for n, t in loop.replica.tensors().items()}
    newcomer.replica.load(state, loop.replica.scalars())
    run(loop, 1)
    run(newcomer, 1)
    assert newcomer.replica.digest() == loop.replica.digest()
    assert loop.replica.scalars()["aspects"] == {"EMA/count": 3}


@pytest.mark.parametrize("name", ["Aardvark", "Zebra"])
def test_parameters_added_by_another_method_are_averaged_too(name):
    def fit(_, step):
        step.model.stem.register_parameter("extra", nn.Parameter(torch.ones(2)))
        yield

    other = type(name, (Aspect,), {"fit": fit})()
    loop, _ = begun(other, EMA())
    assert "average.stem.extra" in loop.replica.training.states["EMA"]


def test_ema_and_swa_exclude_each_other():
    with pytest.raises(AspectError, match="cannot be used together"):
        Weave([EMA(), SWA()])


@pytest.mark.parametrize("wrong", [{"smoothing": 1.0}, {"half_life": "0ba"}, {"start": "never"}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(pydantic.ValidationError):
        EMA(**wrong)


@given(st.integers(1, 1000), st.integers(1, 50))
def test_a_value_counts_half_after_its_half_life(half_life, interval):
    assert smoothing_of(half_life, interval) ** (half_life / interval) == pytest.approx(0.5)


def test_the_function_in_a_users_loop_does_what_the_aspect_does():
    loop, weave = begun(EMA(smoothing=0.8))
    plain, _ = begun()
    averages = None
    for _ in range(4):
        run(loop, 1)
        run(plain, 1)
        model = plain.replica.model
        if averages is None:
            averages = begin_average(model)
        else:
            update_ema(averages, model, 0.8)
    expected = evaluated(loop, weave)
    with averaged(model, averages):
        seen = values(model)
    assert all(torch.equal(seen[n], v) for n, v in expected.items())
    load_average(model, averages)
    assert all(torch.equal(values(model)[n], v) for n, v in expected.items())


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        self.fixed = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("count", torch.tensor(1))


def test_constants_and_counters_are_left_out():
    assert begin_average(Odd()).keys() == {"weight"}


def test_buffers_that_are_not_weights_keep_their_current_values():
    torch.manual_seed(0)
    model = nn.Sequential(spectral_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4))
    model[1].register_buffer("codebook", torch.randn(3))
    averages = begin_average(model)
    for _ in range(5):
        with torch.no_grad():
            model[0].parametrizations.weight.original.add_(torch.randn(4, 4))
        model(torch.randn(8, 4))
        update_ema(averages, model, 0.5)
    own = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.eval()
    with averaged(model, averages):
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, own[name]) != ("running_" in name)
        vector = dict(model.named_buffers())["0.parametrizations.weight.0._u"]
        assert vector.norm().item() == pytest.approx(1.0)
    both = [own["0.parametrizations.weight.0._u"], torch.ones(4) / 2]
    assert sum(both).div(2).norm() < 0.99  # the control: the mean is not a unit vector


def test_small_steps_of_a_bfloat16_value_are_not_rounded_away():
    model = Odd()
    averages = begin_average(model)
    with torch.no_grad():
        model.weight.fill_(2)
    for _ in range(100):
        update_ema(averages, model, 0.999)
    torch.testing.assert_close(averages["weight"], torch.full((3,), 2 - 0.999**100))
    with averaged(model, averages):
        assert model.weight.dtype == torch.bfloat16
        assert torch.equal(model.weight, averages["weight"].bfloat16())
    assert torch.equal(model.weight, torch.full((3,), 2.0, dtype=torch.bfloat16))
    naive_average = torch.ones(3, dtype=torch.bfloat16)  # the control
    for _ in range(100):
        naive_average = naive_average.lerp(model.weight, 0.001)
    assert torch.equal(naive_average, torch.ones(3, dtype=torch.bfloat16))


def test_it_can_be_trained_to_the_end():
    _, losses = trained(TinyImages(), [EMA(half_life="0.5dur", start="0.1dur")], steps=12)
    assert losses == trained(TinyImages(), steps=12)[1]
