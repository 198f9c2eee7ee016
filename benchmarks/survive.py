"""The cost of faults: time to the next committed step, samples/s under fire, compared with peers.

Run as `python -m benchmarks.survive [--quick] [--json] [--only NAME,...]`; the names are those of
the faults in the first column, and `under fire`. The loss of a host's power or cable is measured
by `benchmarks.node_loss`, which needs root.

raytrain_plus: one run for each kind of fault (`outages.py`), two workers, default settings, except
for a checkpoint every 20 steps when all workers are killed. The time ends with the first step that
was not committed before, so in that case it includes all steps that are computed again. After a
coordinator's death training goes on without it, so the figure is the longest time between two
commits.

Peers on the same model: Ray Train (`ray_train.py`), with a checkpoint every 20 steps, until its
next step, which it had done before; and torchft (`torchft_group.py`, `make bench-peers`), whose
replicas this program starts again. Tuned means a heartbeat of 1 s and collectives that give up
after 5 s. torchft's lighthouse and Ray Train's controller are not restarted by their systems, so
the coordinator's death has no peer.

Under fire (`under_fire.py`): a worker is killed every 15 s for two minutes. The start of a
replacement needs seconds of CPU. On two cores this slows the training down, and the figure includes
it.
"""

import random
import signal
from collections.abc import Sequence
from typing import Any

from benchmarks import outages, ray_train, report, torchft_group, under_fire
from benchmarks.report import Aim, Row
from benchmarks.tasks import COMPUTE_BOUND
from benchmarks.under_fire import Fire

_FIRE = "under fire"
_PATIENCE = 75.0  # seconds for a recovery of torchft, whose collectives give up after 60
_MEDIAN, _WORST = 0.5, 1.5  # seconds after a worker's SIGKILL
_TIMES, _QUICK_TIMES = 10, 3
_PEER_TIMES, _QUICK_PEER_TIMES = 3, 1
_QUICK_FIRE = Fire(kills=2, rest=5.0)
_SHARE, _SHARE_WITH_SPARE = 0.75, 0.9
_TORCHFT = {"torchft": torchft_group.DEFAULT, "torchft, tuned": torchft_group.TUNED}


def row(fault: str, system: str, seconds: Sequence[float], times: int, redone: Any) -> Row:
    """Summarise a system's recoveries from one kind of fault."""
    return {
        "fault": fault,
        "system": system,
        "recovered": f"{len(seconds)} of {times}",
        "median s": report.median(seconds, 2) if seconds else "",
        "worst s": round(max(seconds), 2) if seconds else "",
        "steps redone, median": redone,
    }


def ours(fault: str, times: int) -> tuple[Row, list[dict[str, Any]]]:
    """Measure raytrain_plus; returns its row and all outages."""
    found = outages.measure(COMPUTE_BOUND, fault, times)
    redone = report.median([outage.redone for outage in found])
    made = row(fault, "raytrain_plus", [outage.seconds for outage in found], times, redone)
    return made, [vars(outage) for outage in found]


def peers(fault: str, times: int) -> list[Row]:
    """Measure the peers that can have this fault."""
    rows = []
    if fault in ray_train.FAULTS:
        for name, tuned in (("Ray Train", False), ("Ray Train, tuned", True)):
            found = ray_train.measure(
                COMPUTE_BOUND, outages.WORKERS, times, tuned=tuned, fault=fault
            )
            rows.append(_peer_row(fault, name, found, min(times, len(found) + 1)))
    sent = {"worker SIGKILL": signal.SIGKILL, "worker SIGSTOP": signal.SIGSTOP}.get(fault)
    if sent is not None and torchft_group.ENVIRONMENT.exists():
        for name, settings in _TORCHFT.items():
            tries = torchft_group.measure(COMPUTE_BOUND, settings, sent, times, _PATIENCE)
            found = [one for one in tries if one is not None]
            rows.append(_peer_row(fault, name, found, len(tries)))
    return rows


def _peer_row(fault: str, system: str, found: Sequence[dict[str, Any]], times: int) -> Row:
    redone = report.median([one["lost"] for one in found]) if found else ""
    return row(fault, system, [one["seconds"] for one in found], times, redone)


def fire_rows(fire: Fire, *, with_peers: bool) -> list[Row]:
    """Measure samples/s under fire."""
    found: dict[str, dict[str, Any]] = {
        "raytrain_plus": under_fire.ours(COMPUTE_BOUND, fire, 0),
        "raytrain_plus, spares=1": under_fire.ours(COMPUTE_BOUND, fire, 1),
    }
    if with_peers and torchft_group.ENVIRONMENT.exists():
        for name, settings in _TORCHFT.items():
            found[name] = under_fire.torchft(COMPUTE_BOUND, fire, settings)
    return [
        {
            "system": system,
            "samples/s before": round(one["before"]),
            "under fire": round(one["fire"]),
            "after": round(one["after"]),
            "share": round(one["share"], 3),
            "of the faster": round(one["least"], 3),
            "of the time alone": round(one["alone"], 3) if "alone" in one else "",
        }
        for system, one in found.items()
    ]


def aims_of(row: Row, every: Sequence[dict[str, Any]]) -> list[Aim]:
    """Return the aims of raytrain_plus for a fault."""
    fault = row["fault"]
    if fault == "all workers SIGKILL":
        return []
    aims = [Aim(f"committed steps lost, {fault}", max(e["redone"] for e in every), most=0)]
    if fault == "worker SIGKILL":
        aims += [
            Aim(f"seconds after {fault}, median", row["median s"], most=_MEDIAN),
            Aim(f"seconds after {fault}, worst", row["worst s"], most=_WORST),
        ]
    return aims


def main() -> None:
    """Measure."""
    parser = report.parser("from faults to the next committed step, and samples/s under fire")
    names = (*outages.FAULTS, _FIRE)
    parser.add_argument("--only", help=f"some of: {', '.join(names)}", default=",".join(names))
    parser.add_argument("--peers", type=int, help="how often each peer gets a fault; 0: no peers")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(names):
        parser.error(f"--only knows {', '.join(names)}; not {', '.join(sorted(unknown))}")
    random.seed(0)
    times = _QUICK_TIMES if options.quick else _TIMES
    peer_times = _QUICK_PEER_TIMES if options.quick else _PEER_TIMES
    peer_times = peer_times if options.peers is None else options.peers
    rows: list[Row] = []
    aims: list[Aim] = []
    measured: dict[str, list[dict[str, Any]]] = {}
    for fault in (name for name in outages.FAULTS if name in chosen):
        mine, measured[fault] = ours(fault, times)
        rows += [mine, *(peers(fault, peer_times) if peer_times else ())]
        aims += aims_of(mine, measured[fault])
        report.show(
            f"{fault}: to the next committed step", [r for r in rows if r["fault"] == fault]
        )
        phases = ("noticed", "formed", "seconds")
        medians = {p: report.median([one[p] for one in measured[fault]]) for p in phases}
        report.show("raytrain_plus: median seconds from the fault until", [medians])
    fire: list[Row] = []
    if _FIRE in chosen:
        fire = fire_rows(_QUICK_FIRE if options.quick else Fire(), with_peers=peer_times > 0)
        report.show("samples/s while a worker is killed every 15 s", fire)
        aims += [
            Aim("share of samples/s under fire", fire[0]["of the faster"], least=_SHARE),
            Aim("the same with a spare", fire[1]["of the faster"], least=_SHARE_WITH_SPARE),
        ]
    results = {"survive": rows, "outages": measured, "under_fire": fire}
    report.finish(aims, results, as_json=options.json)


if __name__ == "__main__":
    main()
