"""The command that trains a task under many faults and checks that no bit changes."""

import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
import yaml
from rich.console import Console

from raytrain_plus.chaos.campaign import Campaign, verdicts
from raytrain_plus.chaos.judge import State, Verdict
from raytrain_plus.chaos.schedules import USUAL_KINDS
from raytrain_plus.cli.answers import Debug, Json, answer, without_ray_notices
from raytrain_plus.elastic.protocol.faults import ACTIONS, Action, Fault, as_data
from raytrain_plus.interrupts import Interrupted, RunInterrupted
from raytrain_plus.observe.progress import ProgressLine


def chaos(  # noqa: PLR0913 - one option each
    task: Annotated[str, typer.Argument(help="module:attribute or file.py:attribute")],
    *,
    runs: Annotated[int, typer.Option(help="How many schedules.")] = 20,
    seed: Annotated[int, typer.Option(help="Schedule i is drawn from seed + i.")] = 0,
    kinds: Annotated[
        str, typer.Option(metavar="KIND,...", help=f"Of {', '.join(ACTIONS)}.")
    ] = ",".join(USUAL_KINDS),
    workers: Annotated[int, typer.Option(help="The most.")] = 3,
    logical_ranks: Annotated[int, typer.Option(help="Parts of a batch, V.")] = 8,
    steps: Annotated[int, typer.Option(help="Steps of each schedule; an even number.")] = 50,
    batch_size: Annotated[int, typer.Option(help="Samples per step, over all workers.")] = 256,
    data: Annotated[str | None, typer.Option(help="As for train.")] = None,
    storage: Annotated[
        Path | None, typer.Option(help="Where runs are kept. Default: a temporary folder.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Also keep runs that are equal.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a task under many random schedules of faults, and check that no bit changes.

    Each run is compared with an undisturbed run of one worker. If a run differs, its schedule is
    printed in the format of `train --faults`, and the exit status is 1.
    """

    def run() -> dict[str, Any]:
        passing = storage or Path(tempfile.mkdtemp(prefix="raytrain-plus-"))  # for this user alone
        campaign = Campaign(
            task=task,
            storage=passing.expanduser().resolve(),
            runs=runs,
            seed=seed,
            kinds=tuple(_kinds(kinds)),
            workers=workers,
            logical_ranks=logical_ranks,
            steps=steps,
            batch_size=batch_size,
            data=data,
            keep=keep,
            name=f"chaos-{time.strftime('%Y%m%d-%H%M%S')}",
        )
        out = Console(file=sys.stderr if as_json else sys.stdout, markup=False)
        answered, interrupt = _run(campaign, out)
        left = storage is not None and answered["interrupted"]
        if keep or left or _is_bad(answered):
            out.print(f"runs are kept in {campaign.storage}", soft_wrap=True, highlight=False)
        elif storage is None:
            shutil.rmtree(passing, ignore_errors=True)
        if interrupt is not None:
            raise RunInterrupted(interrupt.number, str(Interrupted(interrupt.number)), answered)
        return answered

    if _is_bad(answer(run, as_json=as_json, debug=debug)):
        raise typer.Exit(1)


def _run(campaign: Campaign, out: Console) -> tuple[dict[str, Any], Interrupted | None]:
    """Return the verdicts as data, and the interrupt that ended the campaign, if any."""
    judged: list[Verdict] = []
    err = Console(stderr=True, markup=False)
    interrupt = None
    try:
        with without_ray_notices():
            for verdict in verdicts(campaign, lambda title: ProgressLine(title, err)):
                judged.append(verdict)
                _tell(campaign, verdict, out)
    except KeyboardInterrupt as error:
        interrupt = error if isinstance(error, Interrupted) else Interrupted()
    answered = summary(judged, interrupted=interrupt is not None)
    counts = ", ".join(f"{answered[state]} {state}" for state in get_args(State))
    unstruck = f"; {n} faults found no worker to strike" if (n := answered["not_struck"]) else ""
    of = f" of {campaign.runs}" if interrupt is not None else ""
    out.print(f"{len(judged)}{of} schedules: {counts}{unstruck}", highlight=False)
    return answered, interrupt


def summary(judged: list[Verdict], *, interrupted: bool) -> dict[str, Any]:
    """Return the verdicts as data, and the count of each state."""
    counts = Counter(verdict.state for verdict in judged)
    return {
        **{state: counts[state] for state in get_args(State)},
        "not_struck": sum(len(verdict.not_struck) for verdict in judged),
        "interrupted": interrupted,
        "schedules": [
            {
                "seed": verdict.act.seed,
                "state": verdict.state,
                "reason": verdict.reason,
                "faults": as_data(verdict.act.schedule.faults),
                "not_struck": as_data(verdict.not_struck),
            }
            for verdict in judged
        ],
    }


def _tell(campaign: Campaign, verdict: Verdict, out: Console) -> None:
    faults = verdict.act.schedule.faults
    lines = [f"{verdict.state:8} seed {verdict.act.seed}: {_said(faults)}"]
    if verdict.not_struck:
        lines.append(f"         not struck: {_said(verdict.not_struck)}")
    if verdict.state != "equal":
        listed = yaml.safe_dump(as_data(faults), default_flow_style=None, sort_keys=False)
        lines += [f"         {verdict.reason}", f"# {campaign.command()}", listed.rstrip()]
    out.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _is_bad(answered: Mapping[str, Any]) -> bool:
    return any(answered[state] for state in get_args(State) if state != "equal")


def _said(faults: tuple[Fault, ...]) -> str:
    return ", ".join(
        f"{fault.action}{f' in {fault.phase}' if fault.strikes else ''} at {fault.step}"
        for fault in faults
    )


def _kinds(text: str) -> list[Action]:
    return [kind.strip() for kind in text.split(",") if kind.strip()]  # type: ignore[misc]
