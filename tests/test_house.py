"""The project's rules of style and layout as checks, since rules without a check are not kept."""

import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache
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

# Modules that only decide: imported alone, they load none of `NOT_PURE`.
PURE = [
    "names",
    "redaction",
    "schedules",
    "stopping",
    "seeds",
    "clock",
    "observe.causes",
    "observe.throughput",
    "observe.gauges",
    "observe.journal",
    "observe.events",
    "observe.quantities",
    "observe.scales",
    "observe.charts",
    "observe.intervals",
    "observe.report",
    "streams.order",
    "streams.mixture_order",
    "algorithms.weave",
    "training.tree",
    "checkpoint.retention",
    "checkpoint.schedule",
    "elastic.protocol",
    "elastic.policy",
    "nodes.notices",
    "nodes.diagnosis",
    "chaos.schedules",
    "chaos.judge",
    "chaos.trace",
    "worker_pool.shares",
    "frontier.agenda",
    "frontier.domain",
    "frontier.space",
    "frontier.designs",
    "frontier.points",
    "frontier.estimates",
    "frontier.pareto",
    "frontier.curve",
    "frontier.synergy",
    "frontier.promotion",
    "frontier.calibration",
    "frontier.report",
]
NOT_PURE = ("ray", "grpc", "torch.distributed")
# Arrows point down: a module imports from lower layers or from its own folder.
LAYERS = [
    {
        "seeds",
        "clock",
        "connections",
        "exits",
        "extras",
        "interrupts",
        "task",
        "scalars",
        "stopping",
        "names",
        "redaction",
        "plain_yaml",
        "user_code",
        "observe.journal",
        "observe.causes",
        "observe.events",
    },
    {"schedules", "models", "task_check", "storage"},
    {"algorithms", "streams", "observe"},
    {"loggers"},
    {"ray_cluster", "training", "user_data"},
    {"checkpoint"},
    {"integrations"},
    {"elastic.protocol"},
    {"elastic.policy", "elastic.liveness"},
    {"elastic.worker"},
    {"elastic.coordinator", "elastic.client"},
    {"elastic.local"},
    {"worker_pool", "nodes"},
    {"configure"},
    {"resume"},
    {"run_file"},
    {"trainable"},
    {"trainer"},
    {"inference"},
    {"chaos"},
    {"frontier"},
    {"demo"},
    {"reference"},
    {"cli"},
    {"templates"},  # what users write
    {"__main__"},
]
# The coordinator starts the workers' processes; it imports nothing else of their code.
STARTS_WORKERS = {"raytrain_plus.elastic.coordinator.worker_sources"}
MAY_IMPORT_RAY = {
    "ray_cluster",
    "elastic.client",
    "elastic.coordinator",
    "elastic.local",  # its errors are of Ray's type
    "elastic.protocol.messages",  # the format of a run's description
    "elastic.worker",
    "streams.map_dataset",  # cloudpickle: a user's dataset travels as a task does
    "worker_pool",
    "nodes",
    "frontier.early_stopping",
    "frontier.searching",
    "frontier.trials",
    "frontier.sweep",
    "frontier.tune_space",
    "trainable",
    "trainer",
    "inference.workers",
    "configure",
    "run_file",
    "chaos.campaign",
    "chaos.replay",
    "cli",
    "demo",
}
MAY_IMPORT_DISTRIBUTED = {"training.nccl"}
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}

EXPORTED = {
    "ElasticConfig",
    "ElasticTrainer",
    "Fault",
    "MapDataset",
    "Mixture",
    "Stream",
    "StreamWriter",
    "Task",
    "TrainingFailedError",
    "algorithms",
    "evaluate",
    "predict",
}


@cache
def parsed(source):
    """Return the tree of a source, which no check changes."""
    return ast.parse(source)


@cache
def imports_of(source, *, when_loaded=False):
    """Return the modules that a source imports anywhere; imports by `from` with each name.

    Args:
        source: a module's source code.
        when_loaded: leave out imports inside functions.
    """
    found, left = set(), [parsed(source)]
    while left:
        node = left.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "relative imports hide where things are"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        if not (when_loaded and is_left_out(node)):
            left += ast.iter_child_nodes(node)
    return found


def is_left_out(node):
    """Return whether loading a module does not run a part of its source."""
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def imports(module, package):
    source = MODULES[f"raytrain_plus.{module}"].read_text()
    return any(is_in(name, [package]) for name in imports_of(source))


def is_in(name, folders):
    """Return whether a module is one of the given ones, or in one of them."""
    return any(name == folder or name.startswith(f"{folder}.") for folder in folders)


def loaded_by(name, sources=None):
    """Return the modules that importing one of our modules loads, with their chains of imports."""
    found, left = {}, [(name,)]
    while left:
        way = left.pop()
        known = next((one for one in (way[-1], f"{way[-1]}.__init__") if one in MODULES), None)
        if way[-1] in found:
            continue
        found[way[-1]] = way
        if known is not None:
            source = (sources or {}).get(known) or MODULES[known].read_text()
            left += [(*way, one) for one in imports_of(source, when_loaded=True)]
            left.append((*way, way[-1].rpartition(".")[0]))  # its folder's __init__
    return found


def layer_of(name):
    """Return the layer of one of our modules, and its folder or file there."""
    parts = name.removeprefix("raytrain_plus.").split(".")
    for depth in (2, 1):
        member = ".".join(parts[:depth])
        for layer, members in enumerate(LAYERS):
            if member in members:
                return layer, member
    raise AssertionError(f"{name} has no layer: say in LAYERS where it belongs")


def upward_imports(name, source):
    """Return what one of our modules imports from its own layer or from higher layers."""
    layer, member = layer_of(name)
    wrong = set()
    for imported in imports_of(source):
        known = imported if imported in MODULES else f"{imported}.__init__"
        if not imported.startswith("raytrain_plus.") or known not in MODULES:
            continue
        if imported.count(".") == 1 and known.endswith("__init__"):
            continue  # a folder's `__init__` holds no code
        other, other_member = layer_of(imported)
        # Modules of the lowest layer may import each other.
        if other > layer or (other == layer > 0 and other_member != member):
            wrong.add(imported)
    return wrong


def long_functions(source, most=60):
    """Return functions whose body, with its docstring, is too long.

    The signature does not count: the trainer's lists all options of a user, and has no logic.
    """
    functions = [
        (node.name, node.end_lineno - node.body[0].lineno + 1)
        for node in ast.walk(parsed(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return [(name, lines) for name, lines in functions if lines > most]


INSIDE = [
    name
    for name in MODULES
    if name not in ("raytrain_plus.__init__", "raytrain_plus.elastic.__init__")
]


def test_arrows_point_down():
    wrong = {name: upward_imports(name, MODULES[name].read_text()) for name in INSIDE}
    assert {name: found for name, found in wrong.items() if found} == {}


def test_an_arrow_that_points_up_is_found():
    """The negative control."""
    policy = "raytrain_plus.elastic.policy"
    up = f"import json\ndef f():\n    from {policy}.assignment import assign"
    assert upward_imports("raytrain_plus.training.loop", up) == {f"{policy}.assignment"}
    assert upward_imports("raytrain_plus.elastic.protocol.messages", up)
    sideways = "from raytrain_plus.streams import order"
    assert upward_imports("raytrain_plus.algorithms.aspect", sideways) == {
        "raytrain_plus.streams.order"
    }
    assert upward_imports("raytrain_plus.elastic.coordinator.coordinator", up) == set()


def test_the_coordinator_does_not_import_worker_code():
    coordinator = [name for name in INSIDE if is_in(name, ["raytrain_plus.elastic.coordinator"])]
    knowing = {
        name
        for name in coordinator
        for found in imports_of(MODULES[name].read_text())
        if is_in(found, ["raytrain_plus.elastic.worker"])
    }
    assert knowing == STARTS_WORKERS


def test_the_pure_cores_load_neither_ray_nor_grpc_nor_torch_distributed():
    """Only their own imports count: `import torch` itself loads `torch.distributed`."""
    folders = [f"raytrain_plus.{name}" for name in PURE]
    pure = [name for name in INSIDE if is_in(name, folders)]
    assert not [folder for folder in folders if not any(is_in(one, [folder]) for one in pure)]
    wrong = {}
    for name in pure:
        for found, way in loaded_by(name).items():
            if is_in(found, NOT_PURE):
                wrong[name] = " -> ".join(way)
    assert wrong == {}


def test_the_pure_cores_can_be_imported_without_ray():
    names = [name for name in INSIDE if is_in(name, [f"raytrain_plus.{one}" for one in PURE])]
    code = (
        "import importlib, json, sys\n"
        "for name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
        "print('ray' in sys.modules, 'grpc' in sys.modules)"
    )
    told = json.dumps([name.removesuffix(".__init__") for name in names])
    command = [sys.executable, "-c", code, told]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_indirect_imports_of_a_pure_core_are_found():
    """The negative control."""
    name = "raytrain_plus.seeds"
    sources = {name: "from raytrain_plus.elastic.worker.data import open_data"}
    assert "ray" in loaded_by(name, sources)
    assert "ray" not in loaded_by(name, {name: "def f():\n    import ray"})


def test_only_one_folder_uses_rays_private_api():
    touching = {
        name
        for name in INSIDE
        if re.search(r"\bray(\.\w+)*\._(?!_)|\bray\.core\b|_actor_id", MODULES[name].read_text())
    }
    assert touching  # the control
    assert {name for name in touching if not is_in(name, ["raytrain_plus.ray_cluster"])} == set()


def test_only_listed_modules_import_ray_or_torch_distributed():
    def importing(package):
        inside = [name.removeprefix("raytrain_plus.") for name in INSIDE]
        return {name for name in inside if imports(name, package)}

    def allowed(names, members):
        return {name for name in names if is_in(name, members)}

    ray, distributed = importing("ray"), importing("torch.distributed")
    assert {"elastic.coordinator.workers", "trainer"} <= ray  # the control: imports are found
    assert ray == allowed(ray, MAY_IMPORT_RAY)
    assert distributed == MAY_IMPORT_DISTRIBUTED


def test_functions_are_short():
    long = {str(path.relative_to(ROOT)): long_functions(path.read_text()) for path in OURS}
    assert {path: found for path, found in long.items() if found} == {}


def test_a_long_function_is_found():
    """The negative control."""
    source = "class A:\n    def f(self):\n" + "        pass\n" * 61
    assert long_functions(source) == [("f", 61)]
    assert long_functions(source[: -len("        pass\n")]) == []


def test_module_names_are_not_vague():
    assert not {path.stem for path in OURS} & NAMES_THAT_SAY_NOTHING


def test_no_two_files_of_tests_have_the_same_name():
    """pytest imports them by name, so that a run of all tests could not begin."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert [name for name, times in Counter(names).items() if times > 1] == []


def test_the_exported_names_are_pinned():
    assert set(raytrain_plus.__all__) == EXPORTED
    assert all(getattr(raytrain_plus, name) is not None for name in EXPORTED)
    with pytest.raises(AttributeError, match="no attribute 'Anything'"):
        _ = raytrain_plus.Anything


# Imports the dependencies of raytrain_plus, and then prints what further imports change.
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
    # Not in this process, which has imported raytrain_plus already.
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
    # The negative control: a module that starts something is noticed.
    expected = {"environment", "signals", "threads", "native threads", "torch", "chance", "paths"}
    assert set(meddling) == expected


def test_importing_does_not_load_slow_modules():
    """Each worker imports the package when it starts, and recovery waits for this."""
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
