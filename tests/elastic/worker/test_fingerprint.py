"""A newcomer proves that it computes the same bits."""

import pytest
import torch

from raytrain_plus.elastic.policy.admission import difference
from raytrain_plus.elastic.worker import fingerprint as proofs
from raytrain_plus.elastic.worker.fingerprint import fingerprint
from raytrain_plus.task import TaskError

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)


class Replica:
    def digest(self, *, with_frozen):  # noqa: ARG002
        return "0" * 64


class Loop:
    """Computes the same partial sum each time, or another one from the second time on."""

    def __init__(self, *, repeats):
        self.replica, self.repeats, self.calls = Replica(), repeats, 0

    def probe(self, _batch):
        self.calls += 1
        return [torch.full((3,), 1.0 if self.repeats else float(self.calls))]


@pytest.fixture(autouse=True)
def a_gpu(monkeypatch):
    monkeypatch.setattr(proofs, "_cuda", lambda _: {"device": "a GPU", "tf32": "False False"})


def test_a_task_that_computes_other_bits_each_time_on_a_gpu_is_refused():
    with pytest.raises(TaskError, match="computes the same part twice on cuda:0"):
        fingerprint(Loop(repeats=False), {}, GPU)


def test_a_task_that_computes_equal_bits_on_a_gpu_is_admitted():
    proof = fingerprint(Loop(repeats=True), {}, GPU)
    assert proof["device"] == "a GPU"
    assert difference(proof, proof) == ""


def test_on_a_cpu_the_probe_is_computed_once():
    loop = Loop(repeats=True)
    fingerprint(loop, {}, CPU)
    assert loop.calls == 1


def test_a_newcomer_with_other_settings_of_its_gpu_is_named():
    proof = fingerprint(Loop(repeats=True), {}, GPU)
    assert difference(proof, {**proof, "tf32": "True False"}) == (
        "tf32 is True False, the group's is False False"
    )
