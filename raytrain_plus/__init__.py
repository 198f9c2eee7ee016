"""Elastic, bit-for-bit reproducible PyTorch training on Ray."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raytrain_plus import algorithms as algorithms
    from raytrain_plus.elastic.protocol.faults import Fault as Fault
    from raytrain_plus.elastic.protocol.messages import ElasticConfig as ElasticConfig
    from raytrain_plus.inference.evaluate import evaluate as evaluate
    from raytrain_plus.inference.predict import predict as predict
    from raytrain_plus.streams.map_dataset import MapDataset as MapDataset
    from raytrain_plus.streams.mixture import Mixture as Mixture
    from raytrain_plus.streams.stream import Stream as Stream
    from raytrain_plus.streams.writer import StreamWriter as StreamWriter
    from raytrain_plus.task import Task as Task
    from raytrain_plus.trainer import ElasticTrainer as ElasticTrainer
    from raytrain_plus.trainer import TrainingFailedError as TrainingFailedError

# Imported at first use. A recovery waits for a worker to start, and a worker that does not import
# the driver's modules starts a second earlier. A node agent does not import torch, and so needs a
# third of the memory.
_MODULES = {
    "ElasticConfig": "raytrain_plus.elastic.protocol.messages",
    "ElasticTrainer": "raytrain_plus.trainer",
    "Fault": "raytrain_plus.elastic.protocol.faults",
    "MapDataset": "raytrain_plus.streams.map_dataset",
    "Mixture": "raytrain_plus.streams.mixture",
    "Stream": "raytrain_plus.streams.stream",
    "StreamWriter": "raytrain_plus.streams.writer",
    "Task": "raytrain_plus.task",
    "TrainingFailedError": "raytrain_plus.trainer",
    "evaluate": "raytrain_plus.inference.evaluate",
    "predict": "raytrain_plus.inference.predict",
}
__all__ = [
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
]


def __getattr__(name: str) -> Any:
    if name == "algorithms":
        return importlib.import_module("raytrain_plus.algorithms")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
