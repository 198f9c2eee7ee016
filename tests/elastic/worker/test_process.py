"""How a worker's process is prepared for its device."""

import os

import pytest
import torch

from raytrain_plus.elastic.worker import process


@pytest.fixture
def prepared(monkeypatch):
    """Prepare a process that has a GPU or not; return its device and environment."""
    monkeypatch.setattr(os, "environ", {})
    threads = torch.get_num_threads()

    def prepare(*, gpu):
        monkeypatch.setattr(torch.cuda, "init", lambda: seen.update(os.environ))
        return process.prepare_process(threads, gpu=gpu), seen

    seen = {}
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield prepare
    torch.use_deterministic_algorithms(deterministic)


def test_cuda_starts_with_the_environment_that_makes_its_bits(prepared):
    device, environment = prepared(gpu=True)
    assert device == torch.device("cuda", 0)
    assert environment["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert environment["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "0"


def test_without_a_gpu_no_cuda_variable_is_set(prepared):
    assert prepared(gpu=False) == (torch.device("cpu"), {})
    assert not any("NCCL" in name or "CUBLAS" in name for name in os.environ)
