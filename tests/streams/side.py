"""Imports Hugging Face's `datasets`, which is installed next to the environment and not in it."""

import sys
from pathlib import Path

import pytest

_ENVIRONMENT = Path(__file__).parents[2] / ".venv"
FOLDERS = [str(_ENVIRONMENT / name / "site-packages") for name in ("datasets", "transformers")]


def import_aside(name):
    """Return a package; skip the test if `make install` has not installed it."""
    sys.path += [folder for folder in FOLDERS if folder not in sys.path]
    try:
        return pytest.importorskip(name)
    finally:
        for folder in FOLDERS:
            sys.path.remove(folder)
