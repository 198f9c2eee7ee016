"""Channels-last memory: the same numbers in another memory layout."""

import pytest
import torch
from torch import nn

from raytrain_plus.algorithms import AspectError, AspectWarning, Step, Weave
from raytrain_plus.algorithms.channels_last import (
    ChannelsLast,
    apply_channels_last,
    in_channels_last,
)
from tests.algorithms.tiny import TinyImages, TinyNetwork, TinyTokens, build, trained


def is_last(tensor):
    return tensor.is_contiguous(memory_format=torch.channels_last)


def test_four_dimensional_parameters_change_layout_and_stay_the_same_objects():
    model = TinyNetwork()
    parameters = dict(model.named_parameters())
    values = {name: p.detach().clone() for name, p in parameters.items()}
    plain = TinyNetwork()
    plain.load_state_dict(model.state_dict())
    surgery = apply_channels_last(model)
    assert "blocks.0.residual.0" in surgery.changed
    for name, p in model.named_parameters():
        assert p is parameters[name]
        assert torch.equal(p, values[name])
        assert is_last(p) if p.ndim == 4 else p.is_contiguous()
    weight = model.blocks[0].residual[0].weight
    assert not weight.is_contiguous()
    x = torch.rand(3, 2, 12, 12)
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))
    assert not apply_channels_last(model).changed
    surgery.undo()
    assert all(p.is_contiguous() for p in model.parameters())
    assert weight.stride() == plain.blocks[0].residual[0].weight.stride()


def test_optimizers_continue_unchanged():
    losses = []
    for last in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).double()
        optimizer = torch.optim.Adam(model.parameters())
        if last:
            apply_channels_last(model, optimizer=optimizer)
        x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
        for _ in range(3):
            loss = model(in_channels_last(x) if last else x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())
    torch.testing.assert_close(*losses)


def test_images_gradients_and_optimizer_state_are_channels_last():
    loop, weave = build(TinyImages(), [ChannelsLast()])
    step = Step(loop.replica.training, 0)
    images = TinyImages.part(0, 0)["image"]
    step.batch = {"image": images, "label": torch.zeros(4)}
    with weave.around("batch", step):
        assert torch.equal(step.batch["image"], images)
        assert is_last(step.batch["image"])
    assert images.is_contiguous()
    loop, losses = trained(TinyImages(), [ChannelsLast()])
    for parameter, state in loop.replica.optimizer.state.items():
        if parameter.ndim == 4:
            assert is_last(parameter)
            assert state["momentum_buffer"].stride() == parameter.stride()
    assert losses == pytest.approx(trained(TinyImages())[1], rel=1e-4)


def test_it_is_the_last_to_touch_the_images():
    class Mirror(ChannelsLast):
        runs_after = ()

    assert [a.name for a in Weave([ChannelsLast(), Mirror()]).aspects] == ["Mirror", "ChannelsLast"]


def test_wrong_use_is_explained():
    with pytest.warns(AspectWarning, match="ChannelsLast changed nothing in GPT"):
        build(TinyTokens(), [ChannelsLast()])
    loop, weave = build(TinyImages(), [ChannelsLast(column="picture")])
    step = Step(loop.replica.training, 0)
    step.batch = TinyImages.part(0, 0)
    with pytest.raises(AspectError, match="name it with `column`"), weave.around("batch", step):
        pass
