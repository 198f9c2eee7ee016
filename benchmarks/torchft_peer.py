"""One replica group of torchft, of one process; `benchmarks.torchft_group` runs and ends it.

It follows torchft's own examples, but sends the gradient in one explicit all-reduce, since
torchft's DistributedDataParallel crashes the survivor if a peer dies during it.
It imports nothing that needs this project, which is not installed in its environment.
"""

import argparse
import json
import os
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch.distributed import TCPStore
from torch.nn import functional
from torchft import Manager, ProcessGroupGloo

from benchmarks.networks import CLASSES, IMAGE, convolutions

_NICENESS = 15  # that of Ray's workers
_ROWS = 4096
_HOST = "127.0.0.1"


def main() -> None:
    """Train until this process is killed; writes a line to the log for each commit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("lighthouse")
    parser.add_argument("replica", type=int)
    parser.add_argument("log", type=Path)
    parser.add_argument("parts", type=int, help="micro-batches per step of this replica")
    parser.add_argument("rows", type=int, help="samples in each")
    parser.add_argument("timeout", type=float, help="seconds that a collective may take")
    given = parser.parse_args()
    os.nice(_NICENESS)
    torch.set_num_threads(1)
    torch.manual_seed(given.replica)
    model = convolutions()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    inputs, labels = torch.randn(_ROWS, *IMAGE), torch.randint(CLASSES, (_ROWS,))

    def load(state: dict) -> None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    store = TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
    limit = timedelta(seconds=given.timeout)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=limit),
        load_state_dict=load,
        state_dict=lambda: {"model": model.state_dict(), "optimizer": optimizer.state_dict()},
        min_replica_size=1,
        timeout=limit,
        rank=0,
        world_size=1,
        store_addr=_HOST,
        store_port=store.port,
        lighthouse_addr=given.lighthouse,
        replica_id=f"replica{given.replica}",
        hostname=_HOST,
    )
    parameters = list(model.parameters())
    with given.log.open("a", encoding="utf-8") as log:
        while True:
            began = time.time()
            manager.start_quorum()
            optimizer.zero_grad(set_to_none=True)
            for rows in torch.randperm(_ROWS)[: given.parts * given.rows].split(given.rows):
                loss = functional.cross_entropy(model(inputs[rows]), labels[rows])
                (loss / given.parts).backward()
            gradient = torch.cat([parameter.grad.flatten() for parameter in parameters])
            manager.allreduce(gradient).wait()
            sizes = [parameter.numel() for parameter in parameters]
            for parameter, part in zip(parameters, gradient.split(sizes), strict=True):
                parameter.grad = part.view_as(parameter)
            replicas = manager.num_participants()
            if manager.should_commit():
                optimizer.step()
                entry = {"time": time.time(), "began": began, "replica": given.replica}
                entry |= {"step": manager.current_step(), "replicas": replicas}
                log.write(json.dumps(entry) + "\n")
                log.flush()


if __name__ == "__main__":
    main()
