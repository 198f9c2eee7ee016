"""SWA: the plain mean of the weights at the given times, evaluated and exported."""

import pydantic
import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from raytrain_plus.algorithms import Step
from raytrain_plus.algorithms.swa import SWA, update_swa
from raytrain_plus.algorithms.weight_averaging import begin_average
from tests.algorithms.tiny import RANKS, TinyImages, alone, build


def values(model):
    found = dict(model.named_parameters()) | dict(model.named_buffers())
    return {n: t.detach().clone() for n, t in found.items() if t.is_floating_point()}


def begun(*aspects):
    loop, weave = build(TinyImages(), aspects)
    loop.begin_generation([range(RANKS)], alone())
    return loop, weave


def run(loop, steps):
    """Run steps; return the values after each step."""
    trajectory = []
    for _ in range(steps):
        loop.run_step([TinyImages.part(loop.replica.step, r) for r in range(RANKS)])
        trajectory.append(values(loop.replica.model))
    return trajectory


def evaluated(loop, weave):
    with weave.around("evaluate", Step(loop.replica.training, loop.replica.step)):
        return values(loop.replica.model)


def same(left, right):
    return all(torch.equal(left[n], right[n]) for n in right)


@pytest.mark.parametrize(
    ("settings", "taken"),
    [
        ({"start": "0.5dur", "interval": "2ba"}, [5, 7, 9, 11]),
        ({"start": "2ba", "interval": "0.25dur"}, [1, 4, 7, 10]),
        ({}, [7]),  # eight steps, then every epoch of five
    ],
)
def test_the_evaluated_weights_are_the_mean_of_the_collected_ones(settings, taken):
    loop, weave = begun(SWA(**settings))
    trajectory = run(loop, 12)
    expected = {n: torch.stack([trajectory[i][n] for i in taken]).mean(0) for n in trajectory[0]}
    seen = evaluated(loop, weave)
    torch.testing.assert_close(seen, expected)
    with pytest.raises(AssertionError):  # the control: one more value gives another mean
        torch.testing.assert_close(
            seen,
            {n: torch.stack([trajectory[i][n] for i in [0, *taken]]).mean(0) for n in seen},
        )
    assert loop.replica.scalars()["aspects"] == {"SWA/count": len(taken)}
    assert same(values(loop.replica.model), trajectory[-1])
    assert same(values(loop.replica.undo_fit()), seen)


def test_without_a_learning_rate_training_is_the_same_as_without_swa():
    assert all(
        same(ours, theirs)
        for ours, theirs in zip(run(begun(SWA())[0], 12), run(begun()[0], 12), strict=True)
    )


def test_before_the_start_the_live_weights_are_evaluated():
    loop, weave = begun(SWA())
    live = run(loop, 6)[-1]
    assert same(evaluated(loop, weave), live)
    assert weave.costs["SWA"].idle == 7
    assert same(values(loop.replica.undo_fit()), live)


def test_the_learning_rate_is_changed_from_the_start_on():
    """The oracle: a schedule that does the same."""

    class Scheduled(TinyImages):
        def schedule(self, progress):
            return 0.5 if progress >= 0.5 else 1.0

    loop, _ = build(Scheduled())
    loop.begin_generation([range(RANKS)], alone())
    scheduled = run(loop, 10)
    ours = run(begun(SWA(start="0.5dur", interval="1ba", learning_rate=0.5))[0], 10)
    plain = run(begun()[0], 10)
    assert same(ours[-1], scheduled[-1])
    assert same(ours[5], plain[5])
    assert not same(ours[6], plain[6])


def test_the_function_is_the_mean_of_pytorch():
    model = TinyImages().model()
    theirs = AveragedModel(model, use_buffers=True)
    averages = begin_average(model)
    generator = torch.Generator().manual_seed(1)
    for count in range(5):
        with torch.no_grad():
            for value in [*model.parameters(), *model.buffers()]:
                if value.is_floating_point():
                    value.add_(torch.randn(value.shape, generator=generator))
        update_swa(averages, model, count)
        theirs.update_parameters(model)
    expected = values(theirs.module)
    torch.testing.assert_close(averages, expected)
    assert not torch.allclose(averages["head.weight"], model.head.weight)


def test_an_average_survives_a_failing_evaluation():
    loop, weave = begun(SWA(start="1ba", interval="1ba"))
    live = run(loop, 2)[-1]
    with (
        pytest.raises(RuntimeError, match="lost"),
        weave.around("evaluate", Step(loop.replica.training, 2)),
    ):
        raise RuntimeError("lost")
    assert same(values(loop.replica.model), live)


@pytest.mark.parametrize("wrong", [{"learning_rate": 0}, {"interval": "0ep"}, {"start": "2dur"}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(pydantic.ValidationError):
        SWA(**wrong)
