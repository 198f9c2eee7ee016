"""Which optimizers keep the promise: `python -m benchmarks.optimizers [--site FOLDER] [--json]`.

Each trains a small model on one worker, in a group that grows and shrinks (new workers are healed
in mid-run), and with a checkpoint and a resume. The final states must be equal in every bit.
Libraries other than torch are imported from FOLDER, into which `make bench-optimizers` installs
them.
"""

import inspect
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import report
from benchmarks.group import RANKS, Group, verdict
from raytrain_plus.task import Batch, Task

LIBRARIES = ("torch", "pytorch_optimizer", "schedulefree", "prodigyopt", "heavyball")
_ROWS, _FEATURES, _CLASSES = 5, 6, 3

_OF_MATRICES = ("SpectralSphere",)
_BY_USE = ("AdaGO", "AdaMuon", "DistributedMuon", "MuonClip", "NorMuon")
_OF_MODELS = ("AdamMini", "AdaLOMO", "LOMO")

Make = Callable[[nn.Module], Any]


class Small(Task):
    """A small network, trained by a given optimizer."""

    def __init__(self, make: Make) -> None:
        self._make = make

    def model(self) -> nn.Module:
        """Return two layers with a norm between them."""
        return nn.Sequential(
            nn.Linear(_FEATURES, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, _CLASSES)
        )

    def optimizer(self, model: nn.Module) -> Any:
        """Return the optimizer, in training mode if it has one."""
        optimizer = self._make(model)
        switch = getattr(optimizer, "train", None)
        if callable(switch):
            switch()
        return optimizer

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Return the cross-entropy of each row."""
        return functional.cross_entropy(outputs, batch["label"], reduction="none")


def part(step: int, rank: int) -> Batch:
    """Return the batch of one logical rank in one step."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return {
        "x": torch.randn((_ROWS, _FEATURES), generator=generator),
        "label": torch.randint(0, _CLASSES, (_ROWS,), generator=generator),
    }


def plain(make: Make, steps: int = 4) -> str:
    """Train in plain PyTorch; returns what goes wrong there, or an empty text."""
    torch.manual_seed(17)
    try:
        task = Small(make)
        model = task.model()
        optimizer = task.optimizer(model)
        for step in range(steps):
            losses = [task.loss(model(b["x"]), b) for b in (part(step, r) for r in range(RANKS))]
            optimizer.zero_grad()
            torch.cat(losses).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    except Exception as error:  # noqa: BLE001 - the result is in the table
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    return ""


def of_torch() -> Iterator[tuple[str, Make]]:
    """Return all optimizers of torch.optim, and all implementations of Adam."""
    for name, kind in sorted(vars(torch.optim).items()):
        if inspect.isclass(kind) and kind is not torch.optim.Optimizer and "step" in vars(kind):
            yield name, _made_by(kind)
    ways: list[dict[str, Any]] = [
        {"foreach": True},
        {"fused": True},
        {"amsgrad": True},
        {"maximize": True},
        {"lr": torch.tensor(0.01)},
        {"lr": torch.tensor(0.01), "betas": (torch.tensor(0.9), torch.tensor(0.99))},
    ]
    for way in ways:
        told = ", ".join(f"{k}={type(v).__name__ if k != 'foreach' else v}" for k, v in way.items())
        yield f"Adam({told})", lambda model, way=way: torch.optim.Adam(model.parameters(), **way)
    yield (
        "SGD(momentum, fused)",
        lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True),
    )


def of_pytorch_optimizer() -> Iterator[tuple[str, Make]]:
    """Return all optimizers that the library lists."""
    import pytorch_optimizer  # type: ignore[import-not-found]

    for name in pytorch_optimizer.get_supported_optimizers():
        yield name, _made_by(pytorch_optimizer.load_optimizer(name))
    wrappers = ("Lookahead", "TRAC", "OrthoGrad", "ScheduleFreeWrapper")
    for name in wrappers:
        wrapper = getattr(pytorch_optimizer, name)
        yield (
            f"{name}(AdamW)",
            lambda model, wrapper=wrapper: wrapper(torch.optim.AdamW(model.parameters(), lr=0.01)),
        )


def of_schedulefree() -> Iterator[tuple[str, Make]]:
    """Return all optimizers of the library, and its wrapper."""
    import schedulefree  # type: ignore[import-not-found]

    for name, kind in sorted(vars(schedulefree).items()):
        if inspect.isclass(kind) and "Wrapper" not in name:
            yield name, _made_by(kind)
        elif inspect.isclass(kind):
            yield (
                f"{name}(SGD)",
                lambda model, kind=kind: kind(torch.optim.SGD(model.parameters(), lr=0.1)),
            )


def of_prodigyopt() -> Iterator[tuple[str, Make]]:
    """Return the library's only optimizer."""
    import prodigyopt  # type: ignore[import-not-found]

    yield "Prodigy", _made_by(prodigyopt.Prodigy)


def of_heavyball() -> Iterator[tuple[str, Make]]:
    """Return all optimizers that need parameters only."""
    import heavyball  # type: ignore[import-not-found]

    heavyball.utils.compile_mode = None
    for name, kind in sorted(vars(heavyball).items()):
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer):
            yield name, _made_by(kind)


def _made_by(kind: Any) -> Make:
    """Return a function that makes an optimizer, for matrices only if it refuses the rest."""

    def make(model: nn.Module) -> Any:
        given = inspect.signature(kind.__init__).parameters
        settings: dict[str, Any] = {"lr": 1e-2} if "lr" in given else {}
        settings |= {"model": model} if "model" in given else {}
        if "num_iterations" in given:
            settings["num_iterations"] = 100
        if "base_optimizer" in given:
            settings |= {"base_optimizer": torch.optim.SGD, "lr": 1e-2}
        parameters: Any = list(model.parameters())
        matrices = [p for p in parameters if p.ndim == 2]
        if kind.__name__ in _OF_MATRICES or kind is torch.optim.Muon:
            parameters = matrices
        if kind.__name__ in _BY_USE or kind.__module__.startswith(
            "pytorch_optimizer.optimizer.muon"
        ):
            rest = [p for p in parameters if p.ndim != 2]
            parameters = [{"params": matrices, "use_muon": True}]
            parameters += [{"params": rest, "use_muon": False}]
        if kind.__name__ in _OF_MODELS:
            return kind(**settings)
        return kind(parameters, **settings)

    return make


def tried(library: str, name: str, make: Make) -> report.Row:
    """Try one optimizer; returns its row of the table."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = verdict(lambda: Group(lambda: Small(make), part))
        why = "" if found == "equal" else plain(make)
    if found.startswith("TaskError: "):
        found = f"refused: {found.removeprefix('TaskError: ')}"
    elif why:
        found = f"needs more than parameters and a step(): {why}"
    return {"library": library, "optimizer": name, "result": found}


def page(rows: list[report.Row]) -> str:
    """Return the table as a page of the docs."""
    lines = [
        f"Tried with torch {torch.__version__.partition('+')[0]}. Equal to the bit:",
        "",
    ]
    for library in dict.fromkeys(row["library"] for row in rows):
        of_it = [row for row in rows if row["library"] == library]
        equal = [row["optimizer"] for row in of_it if row["result"] == "equal"]
        lines += [f"- **{library}** ({len(equal)} of {len(of_it)}): {', '.join(equal)}"]
    lines += [
        "",
        "Not equal, and why:",
        "",
        "| library | optimizer | result |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {row['library']} | {row['optimizer']} | {row['result'].replace('|', '/')} |"
        for row in rows
        if row["result"] != "equal"
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Try all optimizers, and print the results."""
    parser = report.parser(__doc__.splitlines()[0])
    parser.add_argument("--site", default="benchmarks/.optimizers", help="where libraries are")
    parser.add_argument(
        "--library", choices=LIBRARIES, action="append", dest="chosen", help="only these"
    )
    parser.add_argument("--only", default="", help="only those whose name contains this")
    parser.add_argument("--write", metavar="FILE", help="write the table as a page")
    options = parser.parse_args()
    sys.path.append(options.site)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    rows = []
    for library in options.chosen or LIBRARIES:
        try:
            listed = list(globals()[f"of_{library}"]())
        except ImportError as error:
            print(f"{library} is left out: {error}")
            continue
        for name, make in listed:
            if options.only.lower() in name.lower():
                rows.append(tried(library, name, make))
                print(f"{library} {name}: {rows[-1]['result']}", flush=True)
    equal = sum(row["result"] == "equal" for row in rows)
    print(f"{equal} of {len(rows)} have equal bits")
    if options.write:
        Path(options.write).write_text(page(rows))
    if options.json:
        print(json.dumps({"rows": rows, "aims": []}))


if __name__ == "__main__":
    main()
