"""CPU time of one message that is sent and one that is received, against gloo.

Two processes of this machine exchange messages of one size, one in each direction at a time. Both
systems take turns, so that the load of the machine meets both. The figure is the CPU time of one
process with all its threads.
"""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.report import Aim, Row
from raytrain_plus.training.endpoint import Endpoint
from raytrain_plus.training.transport import Transport
from raytrain_plus.training.wire import Message

_HOST = "127.0.0.1"
_PATIENCE = timedelta(seconds=120)
_SIZES = {1 << 10: 2_000, 1 << 14: 2_000, 1 << 18: 300}  # bytes, and messages in a turn
_WARM_UP = 50
_MOST = 20.0  # microseconds, of 1 KB

Exchange = Callable[[], None]
System = Callable[[torch.Tensor, torch.Tensor], Exchange]


def costs(*, quick: bool) -> list[Row]:
    """Measure both systems at all sizes."""
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(2)]
    processes = [
        context.Process(target=_work, args=(index, pipe, 3 if quick else 9), daemon=True)
        for index, (_, pipe) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    ours = [pipe for pipe, _ in pipes]
    addresses = [pipe.recv() for pipe in ours]
    for pipe in ours:
        pipe.send(addresses)
    found: list[dict[tuple[int, str], list[float]]] = [pipe.recv() for pipe in ours]
    for process in processes:
        process.join()
    rows = []
    for size in _SIZES:
        own, gloo = (
            statistics.median([*found[0][size, name], *found[1][size, name]])
            for name in ("own", "gloo")
        )
        rows.append(
            {
                "bytes": size,
                "ours µs": round(own, 1),
                "gloo µs": round(gloo, 1),
                "ours / gloo": round(own / gloo, 2),
            }
        )
    return rows


def aims_of(rows: Sequence[Row]) -> list[Aim]:
    """Compare the cost of a small message with its bound."""
    return [Aim("µs of CPU per message of 1 KB", rows[0]["ours µs"], most=_MOST)]


def _work(index: int, pipe: Any, times: int) -> None:
    torch.set_num_threads(1)
    endpoint = Endpoint(_HOST, "the benchmark's secret")
    store = dist.TCPStore(_HOST, 0, is_master=True, wait_for_workers=False) if not index else None
    pipe.send((endpoint.address, store.port if store else 0))
    (first, port), (second, _) = pipe.recv()
    store = store or dist.TCPStore(_HOST, port, is_master=False, timeout=_PATIENCE)
    transport = Transport(index, 2, torch.device("cpu"))
    transport.meet(endpoint, [first, second], 1)
    systems: dict[str, System] = {
        "own": _own(transport, 1 - index),
        "gloo": _gloo(store, index),
    }
    found: dict[tuple[int, str], list[float]] = {}
    for size, count in _SIZES.items():
        sent, received = torch.zeros(size // 4), torch.zeros(size // 4)
        for _ in range(times):
            for name, system in systems.items():
                exchange = system(sent, received)
                for _ in range(_WARM_UP):
                    exchange()
                begun = time.process_time()
                for _ in range(count):
                    exchange()
                spent = (time.process_time() - begun) / count * 1e6
                found.setdefault((size, name), []).append(spent)
    pipe.send(found)
    transport.all_gather_bytes(b"over")  # neither closes while the other one still waits
    os._exit(0)


def _own(transport: Transport, peer: int) -> System:
    def system(sent: torch.Tensor, received: torch.Tensor) -> Exchange:
        messages = [Message(peer, sent)], [Message(peer, received)]  # once, as a bucket does
        return lambda: transport.exchange(*messages)

    return system


def _gloo(store: Any, index: int) -> System:
    options = dist.ProcessGroupGloo._Options()  # noqa: SLF001 - it has no public name
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=_HOST)]  # noqa: SLF001
    options._timeout = _PATIENCE  # noqa: SLF001
    group = dist.ProcessGroupGloo(store, index, 2, options)

    def system(sent: torch.Tensor, received: torch.Tensor) -> Exchange:
        def exchange() -> None:
            receive, send = group.recv([received], 1 - index, 0), group.send([sent], 1 - index, 0)
            receive.wait()
            send.wait()

        return exchange

    return system
