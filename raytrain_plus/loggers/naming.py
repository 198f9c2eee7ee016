"""Loggers by name: a fixed table, from which the command line and files make them."""

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from raytrain_plus.algorithms.naming import parse_settings, split_settings
from raytrain_plus.extras import EXTRAS, how_to_install
from raytrain_plus.loggers.csv_file import CSVLogger
from raytrain_plus.loggers.mlflow import MLflowLogger
from raytrain_plus.loggers.protocol import Logger, LoggerError
from raytrain_plus.loggers.tensorboard import TensorBoardLogger
from raytrain_plus.loggers.wandb import WandbLogger

LOGGERS: Mapping[str, Any] = {
    "csv": CSVLogger,
    "mlflow": MLflowLogger,
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
}


def parse_logger(text: str) -> tuple[str, dict[str, Any]]:
    """Return name and settings of `name` or `name:key=value,key=value`.

    Raises:
        ValueError: the text has another form.
    """
    name, _, settings = text.partition(":")
    return name, parse_settings(split_settings(settings), f"logger {name}")


def make_logger(name: str, settings: Mapping[str, Any]) -> Logger:
    """Make a logger of the table.

    Raises:
        LoggerError: there is no such logger or setting.
    """
    if name not in LOGGERS:
        raise LoggerError(
            f"no logger is called {name!r}; there are {', '.join(LOGGERS)}. One of your own is "
            "given as an object in Python: ElasticTrainer(loggers=[...])"
        )
    kind = LOGGERS[name]
    known = [one.name for one in dataclasses.fields(kind)]
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise LoggerError(
            f"logger {name} has no setting {', '.join(unknown)}; it has {', '.join(known)}"
        )
    made: Logger = kind(**settings)
    return made


def check_loggers(loggers: Sequence[Any]) -> None:
    """Check loggers before a run starts.

    Raises:
        LoggerError: one is of another type, or its library is not installed.
    """
    for one in loggers:
        if not (hasattr(one, "write") and hasattr(one, "open") and hasattr(one, "close")):
            raise LoggerError(
                f"loggers holds {one!r}, which has no open, write and close: derive its class from "
                "raytrain_plus.loggers.Logger"
            )
        name = next((name for name, kind in LOGGERS.items() if type(one) is kind), None)
        for module in EXTRAS.get(name or "", ()):
            if importlib.util.find_spec(module) is None:
                raise LoggerError(f"logger {name}: {how_to_install(module, name)}")


def names_of(loggers: Sequence[Any]) -> list[str]:
    """Return a name for each logger of a run, which is the same when the run is resumed."""
    found: list[str] = []
    for one in loggers:
        kind = type(one)
        known = next((name for name, of in LOGGERS.items() if of is kind), kind.__name__.lower())
        base = "".join(letter if letter.isalnum() else "_" for letter in known)
        again = sum(name.rpartition("-")[0] == base or name == base for name in found)
        found.append(f"{base}-{again + 1}" if again else base)
    return found
