"""The cost of blurred layers, against the usual way of writing them.

Run as `python -m benchmarks.blurpool [--quick] [--json]`.

Measured are forward and backward of one layer, with our `BlurPool` and as the method is usually
written. The usual way in the paper's order is the convolution or the maximum at every pixel, then
zero padding and a depthwise convolution with the stride. In the other order it is zero padding, a
depthwise convolution at every pixel, then the strided convolution. Both run in turns, in one
process and one thread. The ratio is the median over the turns. If kornia can be imported, its
`blur_pool2d` replaces the naive blur in further rows.
"""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import report
from benchmarks.report import Aim, Row
from raytrain_plus.algorithms.blur_pool import apply_blur_pool

_EQUAL = 1e-4  # the largest difference of outputs and gradients, relative to their largest value
_POINTWISE = 3.0  # times as fast as at every pixel
_NO_SLOWER = 0.9

Blur = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Case:
    """A strided layer and its input.

    Attributes:
        name: its name in the table.
        layer: a function that makes the layer.
        shape: the shape of its input.
        blur_first: whether the blur comes before the convolution.
        least: our layer should be at least so many times as fast as the naive one.
    """

    name: str
    layer: Callable[[], nn.Conv2d | nn.MaxPool2d]
    shape: tuple[int, int, int, int]
    blur_first: bool = False
    least: float = _NO_SLOWER


_SMALL, _LARGE = (32, 64, 32, 32), (16, 64, 56, 56)


def _wide() -> nn.Conv2d:
    return nn.Conv2d(64, 128, 3, 2, padding=1, bias=False)


def _pointwise() -> nn.Conv2d:
    return nn.Conv2d(64, 128, 1, 2, bias=False)


CASES = (
    Case("1x1, blur after", _pointwise, _SMALL, least=_POINTWISE),
    Case("1x1, blur after", _pointwise, _LARGE, least=_POINTWISE),
    Case("3x3, blur after", _wide, _SMALL),
    Case("3x3, blur after", _wide, _LARGE),
    Case("3x3, blur first", _wide, _SMALL, blur_first=True),
    Case("3x3, blur first", _wide, _LARGE, blur_first=True),
    Case("maximum 3x3", lambda: nn.MaxPool2d(3, 2, 1), _LARGE),
)


def naive_blur(x: Tensor, stride: int) -> Tensor:
    """Blur as it is usually written."""
    taps = torch.tensor([1.0, 2.0, 1.0])
    weight = (taps[:, None] * taps / 16).to(x).repeat(x.shape[1], 1, 1, 1)
    return functional.conv2d(
        functional.pad(x, (1, 1, 1, 1)), weight, None, stride, 0, 1, x.shape[1]
    )


def naive(layer: nn.Conv2d | nn.MaxPool2d, blur: Blur, *, blur_first: bool) -> nn.Module:
    """Return a module that computes a layer of stride 2 with some blur before or after."""
    if blur_first:
        return _Then(lambda x: blur(x, 1), layer)
    layer.stride = (1, 1)
    return _Then(layer, lambda x: blur(x, 2))


class _Then(nn.Module):
    def __init__(self, *parts: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._parts = parts
        self.layer = next(part for part in parts if isinstance(part, nn.Module))

    def forward(self, x: Tensor) -> Tensor:
        for part in self._parts:
            x = part(x)
        return x


def blurs() -> dict[str, Blur]:
    """Return the other implementations of the blur, by name."""
    found: dict[str, Blur] = {"naive": naive_blur}
    if importlib.util.find_spec("kornia"):
        from kornia.filters import blur_pool2d  # type: ignore[import-not-found]

        found["kornia"] = lambda x, stride: blur_pool2d(x, 3, stride)
    else:
        print("kornia cannot be imported: its rows are skipped")
    return found


def run(module: nn.Module, x: Tensor) -> tuple[list[Tensor], float]:
    """Run a forward and a backward; returns output and gradients, and the seconds."""
    x = x.clone().requires_grad_()
    began = time.perf_counter()
    y = module(x)
    gradients = torch.autograd.grad(y.square().sum(), [x, *module.parameters()])
    return [y.detach(), *gradients], time.perf_counter() - began


def compare(case: Case, name: str, blur: Blur, *, quick: bool) -> Row:
    """Measure our layer and another one in turn."""
    torch.manual_seed(0)
    layer = case.layer()
    other = case.layer()
    other.load_state_dict(layer.state_dict())
    apply_blur_pool(layer, blur_first=case.blur_first)
    theirs = naive(other, blur, blur_first=case.blur_first)
    x = torch.randn(case.shape)
    pairs = [(run(layer, x), run(theirs, x)) for _ in range(6 if quick else 40)][1:]
    (ours, _), (expected, _) = pairs[0]
    off = max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, expected, strict=True)
    )
    return {
        "layer": case.name,
        "input": "x".join(map(str, case.shape)),
        "against": name,
        "ours ms": report.median([a[1] * 1e3 for a, _ in pairs]),
        "theirs ms": report.median([b[1] * 1e3 for _, b in pairs]),
        "times as fast": report.median([b[1] / a[1] for a, b in pairs], 2),
        "difference": float(f"{off:.1g}"),
    }


def main() -> None:
    """Measure all cases."""
    options = report.options(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    measured = [
        (case, compare(case, name, blur, quick=options.quick))
        for name, blur in blurs().items()
        for case in CASES
    ]
    rows = [row for _, row in measured]
    report.show("milliseconds of a forward and backward", rows)
    aims = [Aim("largest difference", max(row["difference"] for row in rows), most=_EQUAL)]
    aims += [
        Aim(
            f"{case.name}, {row['input']}: times as fast as {row['against']}",
            row["times as fast"],
            least=case.least,
        )
        for case, row in measured
    ]
    report.finish(aims, {"blurpool": rows}, as_json=options.json)


if __name__ == "__main__":
    main()
