"""A node dies while its worker fetches from a store that stalls: a program with its own Ray.

    python -m tests.end_to_end.fetching STORAGE ENDPOINT BUCKET CACHE_LIMIT

Prints the run's summary, and whether all faults have happened.
"""

# ruff: noqa: T201 - a command
import json
import sys
from pathlib import Path

from raytrain_plus import Stream
from tests.streams.s3_server import Fault, Server, proxy_of

from .nodes import Stage
from .runs import UNHURRIED, Script, at_step, train, with_workers
from .tasks import Streamed

NAME = "fetching"
STEPS = 60
LOGICAL_RANKS = 4


def task(bucket: str, options: dict, cache: Path, limit: int) -> Streamed:
    """Return the task on the bucket's data, with a small cache."""
    streams = [
        Stream(
            f"s3://{bucket}/{folder}",
            storage_options=options,
            cache=cache,
            cache_limit=limit,
            window=1,
        )
        for folder in ("train", "held_out")
    ]
    return Streamed(*streams)


def main(storage: Path, endpoint: str, bucket: str, limit: int) -> None:
    """Run as a command."""
    server = Server(endpoint, None)
    stall = Fault("stall", times=None)
    with proxy_of(server) as proxy:
        stage = Stage(storage)

        def fail(_: str) -> None:
            proxy.faults.append(stall)

        def kill(_: str) -> None:
            stage.kill("killed")
            proxy.faults.clear()
            proxy.released.set()

        acts = Script(
            (with_workers(1), lambda _: stage.add("killed")),
            (with_workers(2), lambda _: None),
            (at_step(10), fail),
            (lambda _: stall.struck >= 2, kill),
        )
        try:
            run = train(
                task(bucket, server.options(proxy.url), storage / "cache", limit),
                storage,
                logical_ranks=LOGICAL_RANKS,
                workers=(1, 2),
                steps=STEPS,
                cpus=1,
                wanted={1: 2, 11: 1},
                director=acts,
                name=NAME,
                **UNHURRIED,
            )
        finally:
            stage.close()
    print(json.dumps({"over": acts.is_over, "nodes": stage.nodes, "summary": run.summary}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
