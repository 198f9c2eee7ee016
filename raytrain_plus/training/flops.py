"""The floating-point operations of one sample, and the peak of the device that computes them.

Model FLOP/s use (MFU, Chowdhery et al. 2022, arXiv 2204.02311) is the share of the device's peak
that a run reaches. The operations are counted once, when a worker starts, in the forward and the
backward of one part of real data: matrix products, convolutions and attention, as
`torch.utils.flop_counter` counts them. Causal attention counts in full. What is computed again in
the backward (activation checkpointing) counts twice. The rate comes from the journal's steps.
"""

import contextlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from raytrain_plus.task import Batch


class Flops(NamedTuple):
    """What a run's model FLOP/s use is computed from; zeros if it is not known.

    Attributes:
        per_sample: floating-point operations of one sample, forward and backward.
        peak: of one worker's device, per second.
    """

    per_sample: float = 0.0
    peak: float = 0.0


class Peak(NamedTuple):
    """Peak rates of a device without sparsity, in 10^12 operations per second.

    Attributes:
        half: of bfloat16 and float16 with sums in float32.
        tf32: of float32 where TF32 is allowed.
        single: of float32.
    """

    half: float
    tf32: float
    single: float


# From the vendors' data sheets, by what torch calls the device. The first pattern that fits counts.
PEAKS: Mapping[str, Peak] = {
    r"B200": Peak(2250, 1125, 75),  # NVIDIA HGX B200
    r"H200 NVL": Peak(835, 418, 60),  # NVIDIA H200
    r"H200|GH200": Peak(989, 494, 67),
    r"H100 NVL": Peak(835, 418, 60),  # NVIDIA H100
    r"H100 PCIe": Peak(756, 378, 51),
    r"H100": Peak(989, 494, 67),
    r"A100": Peak(312, 156, 19.5),  # NVIDIA A100
    r"A10G": Peak(70, 35, 31.5),  # AWS G5
    r"A10\b": Peak(125, 62.5, 31.2),  # NVIDIA A10
    r"A30\b": Peak(165, 82, 10.3),  # NVIDIA A30
    r"A40\b": Peak(149.7, 74.8, 37.4),  # NVIDIA A40
    r"L40S": Peak(362, 183, 91.6),  # NVIDIA L40S
    r"L40\b": Peak(181, 90.5, 90.5),  # NVIDIA L40
    r"L4\b": Peak(121, 60, 30.3),  # NVIDIA L4
    r"RTX 6000 Ada": Peak(364, 182, 91.1),
    r"RTX A6000": Peak(154.8, 77.4, 38.7),
    r"RTX 4090": Peak(165.2, 82.6, 82.6),  # NVIDIA Ada architecture
    r"RTX 3090": Peak(71, 35.6, 35.6),  # NVIDIA GA102 architecture
    r"V100.*SXM": Peak(125, 15.7, 15.7),  # NVIDIA V100
    r"V100": Peak(112, 14, 14),
    r"T4\b": Peak(65, 8.1, 8.1),  # NVIDIA T4
    r"MI300X": Peak(1307.4, 653.7, 163.4),  # AMD Instinct MI300X
    r"MI250": Peak(191.5, 47.9, 47.9),  # one of its two devices
}
_HALVES = (torch.bfloat16, torch.float16)
_ATTENTION = "_scaled_dot_product_flash_attention"


def peak_of(device: str, dtype: torch.dtype, *, tf32: bool) -> float:
    """Return the peak of a device in operations per second; 0.0 if it is not known.

    Args:
        device: its name, as torch has it.
        dtype: of the operations' inputs.
        tf32: whether float32 may be computed as TF32.
    """
    found = next((peak for name, peak in PEAKS.items() if re.search(name, device)), None)
    if found is None or (dtype not in _HALVES and dtype != torch.float32):
        return 0.0
    single = found.tf32 if tf32 else found.single
    return (found.half if dtype in _HALVES else single) * 1e12


def count_flops(
    probe: Callable[[Batch], object],
    batch: Batch,
    device: torch.device,
    peak_tflops: float | None,
) -> Flops:
    """Count the operations of one part, if the device's peak is known.

    Args:
        probe: computes the forward and the backward of a part, and leaves no trace.
        batch: the part.
        device: on which it is computed.
        peak_tflops: the device's peak in 10^12 operations per second, if the user has said it; 0
            for not to count.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if peak_tflops == 0 or (peak_tflops is None and not peak_of(name, torch.float32, tf32=False)):
        return Flops()
    counted = _counted(probe, batch)
    if not counted:
        return Flops()
    total, seconds = 0.0, 0.0
    for dtype, operations in counted.items():
        tf32 = bool(torch.backends.cuda.matmul.allow_tf32)
        peak = (peak_tflops or 0.0) * 1e12 or peak_of(name, dtype, tf32=tf32)
        if not peak:
            return Flops()
        total += operations
        seconds += operations / peak
    return Flops(total / len(next(iter(batch.values()))), total / seconds)


def _counted(probe: Callable[[Batch], object], batch: Batch) -> Mapping[torch.dtype, int]:
    """Return the operations by the type of their inputs."""
    counter = _Counter()
    with contextlib.ExitStack() as around:
        if "torch._dynamo" in sys.modules:  # a compiled model is counted as the model itself
            around.enter_context(torch.compiler.set_stance("force_eager"))
        around.enter_context(counter)
        probe(batch)
    return counter.counts


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations of everything that is computed inside."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False, so that torch does not import its compiler for this class: 1.6 s of CPU."""
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[torch.dtype] = Counter()
        self._formulas = _formulas()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute an operation, and count it."""
        del types
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = self._formulas.get(getattr(func, "_overloadpacket", func))
        if formula is not None:
            dtype = next(one.dtype for one in args if isinstance(one, Tensor))
            self.counts[dtype] += formula(*args, **kwargs, out_val=result)
        return result


def _formulas() -> Mapping[Any, Callable[..., int]]:
    """Return torch's formulas, and those of attention on a CPU, which it leaves out."""
    from torch.utils.flop_counter import flop_registry  # noqa: PLC0415 - only where it is needed

    aten = torch.ops.aten
    return {
        **flop_registry,
        **{
            getattr(aten, f"{_ATTENTION}_for_cpu{end}"): flop_registry[
                getattr(aten, f"{_ATTENTION}{end}")
            ]
            for end in ("", "_backward")
        },
    }
