"""Changes that a run leaves in its process are undone or found."""

import json
import subprocess
import sys

# Each case in a process of its own, forked from one that has imported everything: changes that
# cannot be undone must stay neither in the tests' process nor for the next case.
PROGRAM = """
import json, os, random, sys, traceback, warnings
import numpy as np
import torch
from torch.nn import functional
from raytrain_plus.worker_pool.process_reset import ProcessBaseline

def tried(spoil, check):
    global baseline
    baseline = ProcessBaseline()
    exec(spoil, globals())
    left = baseline.restore([sys.argv[1]])
    exec(check, globals())
    return left

for spoil, check in json.loads(sys.argv[2]):
    if not os.fork():
        try:
            found = tried(spoil, check)
        except BaseException:
            found = traceback.format_exc()
        print(json.dumps(found), flush=True)
        os._exit(0)
    os.wait()
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


def after(folder, *cases):
    """Return what is left of each case's changes after the reset, or its error."""
    (folder / "theirs.py").write_text("COUNT = 0\n")
    command = [sys.executable, "-c", PROGRAM, str(folder), json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_reversible_changes_are_undone_and_irreversible_ones_are_found(tmp_path):
    spoil = "\n".join(one for one, _ in UNDONE.values())
    check = "\n".join(one for _, one in UNDONE.values())
    undone, *left, failed = after(
        tmp_path, (spoil, check), *((one, "") for one in LEFT.values()), ("", "assert False")
    )
    assert undone == ""
    for name, found in zip(LEFT, left, strict=True):
        assert "computes other bits" in found, name
    assert "AssertionError" in failed  # the control: a check that fails is seen
