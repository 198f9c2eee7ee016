"""Floating-point operations are counted exactly, and only where the device's peak is known."""

import pytest
import torch
from ray.train import ScalingConfig
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from raytrain_plus import ElasticConfig, ElasticTrainer
from raytrain_plus.loggers.rows import Rows
from raytrain_plus.observe.gauges import LiveRun
from raytrain_plus.observe.journal import read
from raytrain_plus.observe.report.history import read_history
from raytrain_plus.observe.report.page import page_of
from raytrain_plus.training.flops import Flops, count_flops, peak_of
from tests.test_local import DATA, Line, trainer

CPU = torch.device("cpu")
ROWS = {"x": torch.randn(4, 8)}


def probe_of(compute):
    return lambda batch: compute(batch["x"]).sum().backward()


def test_each_product_of_the_forward_and_the_backward_counts():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    found = count_flops(probe_of(model), ROWS, CPU, 3.0)
    forward = 2 * 8 * 16 + 2 * 16 * 2
    backward = forward + 2 * 16 * 2  # of all weights, and of the second layer's input
    assert found == Flops(forward + backward, 3e12)
    model[0].requires_grad_(False)
    frozen = count_flops(probe_of(model), ROWS, CPU, 3.0)
    assert frozen.per_sample == forward + 2 * 16 * 2


def test_attention_counts_on_a_cpu_as_well():
    def attend(x):
        q = x.view(4, 1, 1, 8).expand(4, 2, 6, 8).clone().requires_grad_()
        return scaled_dot_product_attention(q, q, q)

    found = count_flops(probe_of(attend), ROWS, CPU, 1.0)
    forward = 2 * (2 * 2 * 6 * 6 * 8)  # two products for each of two heads
    assert found.per_sample == forward * 3.5  # the backward computes the scores again


def test_where_no_peak_is_known_nothing_is_computed():
    def fails(_):
        raise AssertionError

    assert count_flops(fails, ROWS, CPU, None) == count_flops(fails, ROWS, CPU, 0.0) == Flops()
    with pytest.raises(AssertionError):  # the control
        count_flops(fails, ROWS, CPU, 1.0)


@pytest.mark.parametrize(
    ("device", "half", "single", "tf32"),
    [
        ("NVIDIA H200", 989, 67, 494),
        ("NVIDIA H100 80GB HBM3", 989, 67, 494),
        ("NVIDIA H100 PCIe", 756, 51, 378),
        ("NVIDIA A100-SXM4-80GB", 312, 19.5, 156),
        ("NVIDIA A10G", 70, 31.5, 35),
        ("NVIDIA A10", 125, 31.2, 62.5),
        ("NVIDIA L4", 121, 30.3, 60),
        ("NVIDIA L40S", 362, 91.6, 183),
        ("Tesla T4", 65, 8.1, 8.1),
        ("Tesla V100-SXM2-16GB", 125, 15.7, 15.7),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6, 82.6),
        ("a device of next year", 0, 0, 0),
    ],
)
def test_the_peak_is_found_by_the_devices_name(device, half, single, tf32):
    assert peak_of(device, torch.bfloat16, tf32=False) == half * 1e12
    assert peak_of(device, torch.float32, tf32=False) == single * 1e12
    assert peak_of(device, torch.float32, tf32=True) == tf32 * 1e12
    assert peak_of(device, torch.float64, tf32=True) == 0


def use_of(folder):
    """Return what loggers, metrics and the report say of a run."""
    events = list(read(folder / "journal.jsonl"))
    rows = Rows()
    logged = [row.values["mfu"] for row in map(rows.of, events) if row and "mfu" in row.values]
    live = LiveRun(16, 8, 0.0, events)
    live.add([])
    page = page_of(read_history(events), events[-1]["time"])
    return logged, live.mfu(events[-2]["time"]), "model FLOP/s use" in page


def test_a_run_tells_its_use_of_the_peak_and_its_bits_stay(tmp_path):
    plain = trainer(tmp_path, name="plain").fit()
    peak = 1e-6  # 10^12 operations per second: a million operations
    config = ElasticConfig(checkpoint_every=None, peak_tflops=peak)
    counted = trainer(tmp_path, name="counted", elastic=config).fit()
    assert counted.metrics["digest"] == plain.metrics["digest"]
    logged, live, is_shown = use_of(tmp_path / "counted")
    (environment,) = [
        event
        for event in read(tmp_path / "counted" / "journal.jsonl")
        if event["event"] == "environment"
    ]
    assert environment["sample_flops"] == 2 * 2  # y = ax + b, and the gradient of a
    assert environment["peak_flops"] == 1e6
    assert len(logged) == 7  # of 8 steps: the first one has no rate
    assert min(logged) > 0
    assert live > 0
    assert is_shown
    assert use_of(tmp_path / "plain") == ([], None, False)


def test_a_model_that_cannot_be_counted_trains_without(tmp_path):
    class Odd(Line):
        def forward(self, model, batch):
            if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
                raise RuntimeError("no mode may look")
            return super().forward(model, batch)

    config = ElasticConfig(checkpoint_every=None, peak_tflops=1.0)
    result = trainer(tmp_path, task=Odd(), elastic=config).fit()
    assert result.metrics["steps"] == 8
    assert use_of(tmp_path / "local")[0] == []
    assert result.metrics["digest"] == trainer(tmp_path, name="plain").fit().metrics["digest"]


@pytest.mark.parametrize("peak", [-1.0, float("nan"), float("inf")])
def test_a_wrong_peak_is_refused(peak):
    with pytest.raises(ValueError, match="peak_tflops is"):
        ElasticTrainer(
            task=Line(),
            data=DATA,
            scaling_config=ScalingConfig(num_workers=0),
            elastic=ElasticConfig(peak_tflops=peak),
        )
