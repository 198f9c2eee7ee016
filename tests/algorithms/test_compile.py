"""Compilation: the same function, and bits that do not depend on what a process has seen."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo import config
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.utils import counters

from raytrain_plus.algorithms import AspectError, Step, Weave
from raytrain_plus.algorithms.compile import CACHE, Compile, apply_compile, at_most
from raytrain_plus.algorithms.gyro_dropout import GyroDropout
from tests.algorithms.tiny import TinyImages, build, trained

ROOT = Path(__file__).parents[2]


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(24)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(24, 3)

    def forward(self, images):
        return self.head(self.dropout(torch.tanh(self.norm(images.flatten(1)[:, :24]))))


class Small(TinyImages):
    def model(self):
        return Network()


@pytest.fixture(autouse=True)
def _as_on_a_worker():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch._dynamo.reset()
    counters.clear()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_num_threads(threads)


def gradient(model, n):
    """Return the digest of the gradient of a batch of n samples; earlier draws do not matter."""
    torch.manual_seed(n)
    model(torch.randn(n, 24)).square().sum().backward()
    digest = hashlib.sha256(b"".join(p.grad.numpy().tobytes() for p in model.parameters()))
    model.zero_grad()
    return digest.hexdigest()


def graphs():
    return counters["stats"]["unique_graphs"]


def network():
    torch.manual_seed(0)
    return Network()


def test_bits_do_not_depend_on_the_shapes_that_a_process_has_seen():
    newcomer = network()
    apply_compile(newcomer)
    expected = gradient(newcomer, 4)
    torch._dynamo.reset()
    counters.clear()
    survivor = network()
    apply_compile(survivor)
    assert gradient(survivor, 6) != expected
    survivor.eval()(torch.ones(4, 24))
    survivor.train()
    assert gradient(survivor, 4) == expected
    assert graphs() == 3
    assert gradient(survivor, 4) == expected
    assert graphs() == 3
    # The control: with automatic shapes, the third shape gets no code of its own.
    torch._dynamo.reset()
    counters.clear()
    automatic = network()
    automatic.compile(backend="eager")
    for n in (4, 6, 8, 10):
        gradient(automatic, n)
    assert graphs() == 2


def test_it_computes_the_same_as_the_plain_model():
    model, x = network().eval(), torch.randn(4, 24)
    plain, names = model(x), list(model.state_dict())
    surgery = apply_compile(model)
    compiled = model(x)
    torch.testing.assert_close(compiled, plain)
    assert graphs() == 1
    assert list(model.state_dict()) == names
    surgery.undo()
    assert model._compiled_call_impl is None
    assert torch.equal(model(x), plain)


TRAIN_ELSEWHERE = """
import sys
import torch
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
torch.utils.deterministic.fill_uninitialized_memory = False
sys.path.insert(0, sys.argv[1])
from raytrain_plus.algorithms.compile import Compile
from tests.algorithms.test_compile import Small
from tests.algorithms.tiny import trained
print(trained(Small(), [Compile()])[0].replica.digest())
"""


def test_another_process_trains_to_the_same_bits_with_dropout():
    # Other shapes first, then the same code twice: newly compiled, and from the cache.
    gradient(build(Small(), [Compile()])[0].replica.model, 6)
    digests = {trained(Small(), [Compile()])[0].replica.digest() for _ in range(2)}
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_ELSEWHERE, str(ROOT)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert digests == {done.stdout.strip()}
    assert trained(Small())[0].replica.digest() not in digests


def test_too_many_versions_are_an_error_and_not_other_bits():
    loop, weave = build(Small(), [Compile(versions=1)])
    step, model = Step(loop.replica.training, 0), loop.replica.model
    before = config.recompile_limit, config.fail_on_recompile_limit_hit
    for point in ("batch", "evaluate"):
        with weave.around(point, step):
            model(torch.ones(4, 24))
            with pytest.raises(FailOnRecompileLimitHit):
                model(torch.ones(5, 24))
    assert (config.recompile_limit, config.fail_on_recompile_limit_hit) == before
    with config.patch(recompile_limit=1):
        model(torch.ones(5, 24))  # the control: PyTorch continues without compiling
    assert graphs() == 1


def test_a_choice_of_gyro_dropout_needs_no_new_version():
    gyro = GyroDropout(sigma=6, tau=2, interval="1ba")
    loop, _ = trained(Small(), [gyro, Compile(versions=1)])
    first = graphs()
    loop.run_step([Small.part(3, r) for r in range(6)])
    assert graphs() == first > 0


def test_compiled_code_is_kept_in_the_given_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE, str(tmp_path / "before"))
    loop, _ = build(Small(), [Compile(cache=str(tmp_path / "given"))])
    assert os.environ[CACHE] == str(tmp_path / "given")
    assert graphs() == 0  # code is compiled only when it is needed
    with at_most(2):
        loop.replica.model(torch.ones(11, 24))  # a shape that no other test has had compiled
    assert list((tmp_path / "given").rglob("*.so"))
    loop.replica.undo_fit()
    assert os.environ[CACHE] == str(tmp_path / "before")
    monkeypatch.delenv(CACHE)
    build(Small(), [Compile(cache=str(tmp_path))])[0].replica.undo_fit()
    assert CACHE not in os.environ


def test_a_machine_without_a_compiler_is_refused(monkeypatch):
    Weave([Compile()])
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(AspectError, match=r"no 'no-such-compiler' on the path: install one"):
        build(Small(), [Compile()])
