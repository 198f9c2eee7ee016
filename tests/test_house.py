"""The rules of the house, kept by a check, since a style that nothing executes does not hold."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import raytrain_plus

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "raytrain_plus"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
OURS = [
    path
    for folder in ("raytrain_plus", "tests", "benchmarks", "cluster", "tune_recipes")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
]

PURE = [
    "observe.causes",
    "observe.throughput",
    "observe.gauges",
    "elastic.plan",
    "elastic.records.checkpoints",
    "elastic.health.attribution",
    "elastic.health.watch",
    "elastic.health.speeds",
    "elastic.faults.trace",
    "elastic.records.timesheet",
    "training.retention",
    "training.tree",
    "streams.order",
    "streams.mixture",
    "algorithms.weave",
    "schedules",
    "seeds",
    "clock",
    "names",
    "observe.journal",
    "observe.events",
    "redaction",
    "nodes.notices",
    "nodes.complaints",
    "observe.quantities",
    "observe.scales",
    "observe.charts",
    "observe.intervals",
    "observe.report.history",
    "observe.report.spending",
    "observe.report.changes",
    "chaos.schedules",
    "chaos.judge",
    "frontier.agenda",
    "frontier.hopeless",
    "frontier.leases",
    "frontier.domain",
    "frontier.space",
    "frontier.switches",
    "frontier.designs",
    "frontier.points",
    "frontier.estimates",
    "frontier.pareto",
    "frontier.curve",
    "frontier.synergy",
    "frontier.promotion",
    "frontier.calibration",
    "frontier.report.findings",
    "frontier.report.contributions",
    "frontier.report.wording",
    "frontier.report.sentences",
    "frontier.report.drawings",
    "frontier.report.view",
    "frontier.report.table",
    "frontier.report.document",
    "frontier.report.summary",
]
# Arrows point down: a module imports what stands below its own layer, or in its own folder.
LAYERS = [
    {
        "seeds",
        "clock",
        "exits",
        "task",
        "names",
        "redaction",
        "plain_yaml",
        "user_code",
        "observe.journal",
        "observe.events",
    },
    {"schedules", "models", "task_check"},
    {"algorithms", "streams", "observe"},
    {"training"},
    {"elastic"},
    {"nodes"},
    {"configure"},
    {"resuming"},
    {"trainer"},
    {"chaos"},
    {"frontier"},
    {"demo"},
    {"reference"},
    {"cli"},
    {"__main__"},
]
MAY_IMPORT_RAY = {
    "elastic",
    "nodes",
    "frontier.lender",
    "frontier.searching",
    "frontier.stopping",
    "frontier.trials",
    "frontier.sweep",
    "frontier.tune_space",
    "trainer",
    "configure",
    "chaos.campaign",
    "chaos.replay",
    "cli",
    "demo",
}
MAY_IMPORT_DISTRIBUTED = {"elastic.nccl", "elastic.transport"}
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}

EXPORTED = {
    "ElasticConfig",
    "ElasticTrainer",
    "Fault",
    "Mixture",
    "Stream",
    "StreamWriter",
    "Task",
    "TrainingFailedError",
    "algorithms",
}


def imports_of(source):
    """Return the modules that a source imports anywhere, those named by `from` with each name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "relative imports hide where things are"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def imports(module, package):
    source = MODULES[f"raytrain_plus.{module}"].read_text()
    return any(name == package or name.startswith(package + ".") for name in imports_of(source))


def layer_of(name):
    """Return the layer and the member of it that a module of ours belongs to."""
    parts = name.removeprefix("raytrain_plus.").split(".")
    for depth in (2, 1):
        member = ".".join(parts[:depth])
        for layer, members in enumerate(LAYERS):
            if member in members:
                return layer, member
    raise AssertionError(f"{name} has no layer: say in LAYERS where it belongs")


def upward_imports(name, source):
    """Return what a module of ours imports from its own layer's neighbours or from above."""
    layer, member = layer_of(name)
    wrong = set()
    for imported in imports_of(source):
        known = imported if imported in MODULES else f"{imported}.__init__"
        if not imported.startswith("raytrain_plus.") or known not in MODULES:
            continue
        other, other_member = layer_of(imported)
        # The leaves of the lowest layer may stand on each other.
        if other > layer or (other == layer > 0 and other_member != member):
            wrong.add(imported)
    return wrong


def long_functions(source, most=60):
    """Return functions whose body, docstring included, is too long.

    A signature does not count: the trainer's, which names all that a user may say, is no logic.
    """
    functions = [
        (node.name, node.end_lineno - node.body[0].lineno + 1)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return [(name, lines) for name, lines in functions if lines > most]


INSIDE = [name for name in MODULES if name != "raytrain_plus.__init__"]


@pytest.mark.parametrize("name", INSIDE)
def test_arrows_point_down(name):
    assert upward_imports(name, MODULES[name].read_text()) == set()


def test_an_arrow_that_points_up_is_found():
    """The negative control."""
    up = "import json\ndef f():\n    from raytrain_plus.elastic.policy.assignment import assign"
    assert upward_imports("raytrain_plus.training.loop", up) == {
        "raytrain_plus.elastic.policy.assignment"
    }
    sideways = "from raytrain_plus.streams import order"
    assert upward_imports("raytrain_plus.algorithms.aspect", sideways) == {
        "raytrain_plus.streams",
        "raytrain_plus.streams.order",
    }
    assert upward_imports("raytrain_plus.elastic.worker.worker", up) == set()


@pytest.mark.parametrize("module", PURE)
def test_the_pure_cores_know_neither_ray_nor_torch_distributed(module):
    assert not imports(module, "ray")
    assert not imports(module, "torch.distributed")


def test_only_those_who_must_import_ray_or_torch_distributed():
    def importing(package):
        inside = [name.removeprefix("raytrain_plus.") for name in INSIDE]
        return {name for name in inside if imports(name, package)}

    def allowed(names, members):
        return {n for n in names if n in members or n.split(".")[0] in members}

    ray, distributed = importing("ray"), importing("torch.distributed")
    assert {"elastic.membership.pool", "trainer"} <= ray  # the control: imports are found
    assert ray == allowed(ray, MAY_IMPORT_RAY)
    assert distributed == MAY_IMPORT_DISTRIBUTED


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short(path):
    assert long_functions(path.read_text()) == []


def test_a_long_function_is_found():
    """The negative control."""
    source = "class A:\n    def f(self):\n" + "        pass\n" * 61
    assert long_functions(source) == [("f", 61)]
    assert long_functions(source[: -len("        pass\n")]) == []


def test_names_of_modules_say_what_they_hold():
    assert not {path.stem for path in OURS} & NAMES_THAT_SAY_NOTHING


def test_the_exported_names_are_pinned():
    assert set(raytrain_plus.__all__) == EXPORTED
    assert all(getattr(raytrain_plus, name) is not None for name in EXPORTED)
    with pytest.raises(AttributeError, match="no attribute 'Anything'"):
        _ = raytrain_plus.Anything


# Imports what raytrain_plus depends on, and then says what further imports change.
CHANGES = """
import json, os, random, signal, sys, threading, warnings
import fsspec, numpy, pyarrow, pydantic, ray, ray.train, safetensors.torch, torch, typer, yaml
import torch.distributed

def state():
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "native threads": len(os.listdir("/proc/self/task")),
        "environment": dict(os.environ),
        "signals": [str(signal.getsignal(s)) for s in signal.valid_signals()],
        "folder": os.getcwd(),
        "paths": list(sys.path),
        "children": open("/proc/self/task/%d/children" % os.getpid()).read(),
        "warnings": len(warnings.filters),
        "exceptions": [str(sys.excepthook), str(threading.excepthook)],
        "torch": [
            torch.initial_seed(), torch.get_num_threads(), str(torch.get_default_dtype()),
            torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled(),
            torch.get_rng_state().sum().item(), torch.distributed.is_initialized(),
        ],
        "chance": [str(random.getstate()), str(numpy.random.get_state())],
        "ray": ray.is_initialized(),
    }

def changed(module):
    before = state()
    __import__(module)
    after = state()
    return sorted(key for key in after if after[key] != before[key])

sys.path.insert(0, sys.argv[1])
ours = changed("raytrain_plus") + changed("raytrain_plus.trainer")
print(json.dumps([ours, changed("meddling")]))
"""

MEDDLING = """
import os, random, signal, sys, threading
import torch
os.environ["MEDDLING"] = "1"
signal.signal(signal.SIGTERM, signal.SIG_IGN)
threading.Thread(target=threading.Event().wait, daemon=True).start()
torch.manual_seed(0)
random.seed(0)
sys.path.append("elsewhere")
"""


def test_importing_starts_nothing(tmp_path):
    (tmp_path / "meddling.py").write_text(MEDDLING)
    # Not the environment of this process, in which raytrain_plus has been imported already.
    clean = {
        name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ
    }
    done = subprocess.run(
        [sys.executable, "-c", CHANGES, str(tmp_path)],
        env=clean,
        capture_output=True,
        text=True,
        check=True,
    )
    ours, meddling = json.loads(done.stdout)
    assert ours == []
    # The negative control: a module that does start something is seen to.
    expected = {"environment", "signals", "threads", "native threads", "torch", "chance", "paths"}
    assert set(meddling) == expected


def test_importing_leaves_out_what_takes_seconds():
    """Each worker imports the package when it comes up, and that is what recovery waits for."""
    slow = {"torch._dynamo", "torch._inductor", "torchmetrics", "transformers", "sympy", "mlxtend"}
    code = (
        "import sys, json, raytrain_plus\n"
        "raytrain_plus.Task, raytrain_plus.algorithms\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(json.loads(done.stdout))
    assert {"torch", "raytrain_plus"} <= imported
    assert not slow & imported
