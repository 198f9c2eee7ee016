"""Runs one job twice, once disturbed, and checks that both results are equal in every bit."""

import time
from pathlib import Path
from typing import Any

import ray.train
from rich.console import Console

from raytrain_plus.demo.digits import Digits, write_streams
from raytrain_plus.demo.picture import draw
from raytrain_plus.elastic.protocol.faults import Fault
from raytrain_plus.elastic.protocol.messages import ElasticConfig
from raytrain_plus.observe import journal
from raytrain_plus.observe.progress import ProgressLine, summary_table
from raytrain_plus.observe.verify import compare
from raytrain_plus.storage.errors import StorageError
from raytrain_plus.storage.locations import local_path
from raytrain_plus.streams.stream import Stream
from raytrain_plus.trainer import ElasticTrainer

_DURATION = "24ep"
_HANG_DEADLINE = 5.0  # seconds
FAULTS = (
    Fault(step=0, action="remove"),  # start with two of three workers
    Fault(step=100, action="kill", phase="backward"),
    Fault(step=280, action="add"),
    Fault(step=440, action="drain"),
    Fault(step=600, action="stop"),
)


def show(storage: str, out: Console, err: Console) -> dict[str, Any]:
    """Run the demo.

    Args:
        storage: folder of the runs.
        out: console for the results.
        err: console for the progress.

    Raises:
        StorageError: it is not a folder of this machine.

    Returns:
        `disturbed` and `undisturbed` as `train` prints them, `equal`, and `picture`.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = local_path(storage)
    if folder is None:
        raise StorageError(
            f"the demo writes to a folder of this machine, and --storage is {storage!r}: give a "
            "path. (A run of your own may be in an object store.)"
        )
    streams = write_streams(folder / "digits")
    out.print(
        "The disturbed run starts with 2 workers; one is killed in the middle of a step, a third "
        "is added, one is drained, one is stopped (SIGSTOP). A stopped worker counts as hung after "
        f"{_HANG_DEADLINE:g} s without progress, which is the longest pause. The undisturbed run "
        "has 1 worker."
    )
    disturbed = _train(f"disturbed-{stamp}", storage, streams, (1, 3), FAULTS, err)
    undisturbed = _train(f"undisturbed-{stamp}", storage, streams, (1, 1), (), err)
    summaries = {"disturbed": disturbed, "undisturbed": undisturbed}
    out.print(summary_table(summaries))
    journals = {what: journal.read(Path(s["folder"])) for what, s in summaries.items()}
    found = compare(journals["disturbed"], journals["undisturbed"])
    equal = found.equal and disturbed["digest"] == undisturbed["digest"]
    picture = folder / f"demo-{stamp}.png"
    draw(journals["disturbed"], journals["undisturbed"], picture)
    if equal:
        out.print(
            f"The digests are equal: all {found.steps} losses, the metrics and the final weights "
            "are the same in every bit.",
            style="bold green",
        )
    else:
        out.print(f"The runs DIFFER: {found.first_difference}", style="bold red")
    out.print(f"A picture of the run: {picture}", soft_wrap=True)
    return {**summaries, "equal": equal, "picture": str(picture)}


def _train(
    name: str,
    storage: str,
    streams: tuple[Stream, Stream],
    workers: tuple[int, int],
    faults: tuple[Fault, ...],
    err: Console,
) -> dict[str, Any]:
    training, held_out = streams
    trainer = ElasticTrainer(
        task=Digits(),
        data=training,
        evaluation_data=held_out,
        batch_size=128,
        duration=_DURATION,
        evaluate_every="4ep",
        logical_ranks=8,
        scaling_config=ray.train.ScalingConfig(num_workers=workers),
        run_config=ray.train.RunConfig(name=name, storage_path=storage),
        elastic=ElasticConfig(hang_deadline=_HANG_DEADLINE),
        faults=faults,
    )
    with ProgressLine(name, err) as line:
        summary: dict[str, Any] = trainer.fit(line).return_value
    return summary
