"""transformers, which is installed next to the environment and not in it.

torchmetrics imports it wherever it finds it, which would cost each worker of each test a second of
CPU.
"""

import sys
from pathlib import Path

import pytest

FOLDER = str(Path(__file__).parents[2] / ".venv" / "transformers" / "site-packages")


def import_transformers():
    """Return the package; skip the module if `make install` has not put it there."""
    if FOLDER not in sys.path:
        sys.path.append(FOLDER)
    return pytest.importorskip("transformers")


def forget():
    """Take the folder off the path again, before workers are given that."""
    if FOLDER in sys.path:
        sys.path.remove(FOLDER)
