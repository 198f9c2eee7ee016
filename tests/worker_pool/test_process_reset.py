"""Changes that a run leaves in its process are undone or found."""

import subprocess
import sys

import pytest

# Each in its own process: changes that cannot be undone must not stay in the tests' process.
PROGRAM = """
import sys
import torch, random, os, warnings
import numpy as np
from torch.nn import functional
from raytrain_plus.worker_pool.process_reset import ProcessBaseline
baseline = ProcessBaseline()
{spoil}
print(baseline.restore([sys.argv[1]]))
{check}
"""

UNDONE = {
    "dtype": (
        "torch.set_default_dtype(torch.float64)",
        "assert torch.zeros(1).dtype == torch.float32",
    ),
    "threads": (
        "before = torch.get_num_threads(); torch.set_num_threads(before + 1)",
        "assert torch.get_num_threads() == before",
    ),
    "gradients": ("torch.set_grad_enabled(False)", "assert torch.is_grad_enabled()"),
    "denormals": ("torch.set_flush_denormal(True)", "assert torch.tensor(1e-39) * 0.5 > 0"),
    "determinism": (
        "torch.use_deterministic_algorithms(True)",
        "assert not torch.are_deterministic_algorithms_enabled()",
    ),
    "mkldnn": ("torch.backends.mkldnn.set_flags(False)", "assert torch.backends.mkldnn.enabled"),
    "environment": ("os.environ['SPOILT'] = '1'", "assert 'SPOILT' not in os.environ"),
    "paths": ("sys.path.insert(0, sys.argv[1])", "assert sys.argv[1] not in sys.path"),
    "warnings": (
        "warnings.simplefilter('ignore')",
        "assert ('ignore', None, Warning, None, 0) not in warnings.filters",
    ),
    "modules": (
        "sys.path.insert(0, sys.argv[1]); import theirs; theirs.COUNT += 1",
        "sys.path.insert(0, sys.argv[1]); import theirs; assert theirs.COUNT == 0",
    ),
    "chance": (
        "torch.rand(3); random.random(); np.random.rand()",
        "a = torch.rand(1); baseline.restore([]); assert a == torch.rand(1)",
    ),
}
LEFT = {
    "a function of torch replaced": "functional.layer_norm = lambda x, *_: x",
    "a library's constant": "torch.nn.LayerNorm.forward = lambda self, x: 2 * x",
}


def after(tmp_path, spoil, check=""):
    (tmp_path / "theirs.py").write_text("COUNT = 0\n")
    code = PROGRAM.format(spoil=spoil, check=check)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_reversible_changes_are_undone(tmp_path):
    spoil = "\n".join(one for one, _ in UNDONE.values())
    check = "\n".join(one for _, one in UNDONE.values())
    assert after(tmp_path, spoil, check) == ""


@pytest.mark.parametrize("spoil", LEFT.values(), ids=LEFT)
def test_irreversible_changes_are_found(tmp_path, spoil):
    assert "computes other bits" in after(tmp_path, spoil)
