"""Imports transformers, which is installed next to the environment and not in it.

If torchmetrics finds it, it imports it. That would cost each worker of each test a second of CPU.
"""

import sys
from pathlib import Path

import pytest

FOLDER = str(Path(__file__).parents[2] / ".venv" / "transformers" / "site-packages")


def import_transformers():
    """Return the package; skip the test module if `make install` has not installed it."""
    if FOLDER not in sys.path:
        sys.path.append(FOLDER)
    return pytest.importorskip("transformers")


def forget():
    """Remove the folder from the import path, before workers get the path."""
    if FOLDER in sys.path:
        sys.path.remove(FOLDER)
