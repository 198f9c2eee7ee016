"""A command whose extra is not installed says which one to install."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from raytrain_plus import extras

ROOT = Path(__file__).parents[1]
MODULES = {"mlflow-skinny": "mlflow", "tensorboardx": "tensorboardX"}  # of packages of other names
# Finds modules as Python does, except the packages of all extras. It runs several commands.
WITHOUT = f"""
import contextlib, io, json, sys
from importlib.machinery import PathFinder
EXTRAS = {sorted({module for modules in extras.EXTRAS.values() for module in modules})}
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in EXTRAS else PathFinder.find_spec(name, path, target)
sys.meta_path[:] = [f for f in sys.meta_path if f is not PathFinder] + [Finder]
from raytrain_plus.cli import main
answers = []
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    out, error, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    answers.append([code, error.getvalue()])
print(json.dumps(answers))
"""
NEEDS = [
    ("demo", ["demo", "--storage", "{}"]),
    ("frontier", ["sweep", "tune_recipes/digits.py", "--budget", "1m", "--storage", "{}"]),
    ("frontier", ["frontier", "{}"]),
    ("s3", ["data", "inspect", "s3://bucket/stream"]),
]


def test_the_extra_is_named(tmp_path):
    commands = [[one.format(tmp_path) for one in arguments] for _, arguments in NEEDS]
    commands.append(["algorithms", "--explain", "MixUp"])  # the control: it needs no extra
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, json.dumps(commands)],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
    )
    *answers, control = json.loads(done.stdout)
    assert control[0] == 0, control
    for (extra, _), (code, text) in zip(NEEDS, answers, strict=True):
        assert (code, len(text.splitlines())) == (2, 1), text
        assert "is not installed" in text
        assert text.endswith(f"pip install 'raytrain-plus[{extra}]'\n")


def test_each_package_of_an_extra_is_named_by_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        extra: {re.split(r"[\[<>= ]", one)[0].lower() for one in needed}
        for extra, needed in project["optional-dependencies"].items()
        if extra != "dev"
    }
    own = {re.split(r"[\[<>= ]", one)[0] for one in project["dependencies"]}
    assert {extra: set(modules) for extra, modules in extras.EXTRAS.items()} == {
        extra: {MODULES.get(name, name.replace("-", "_")) for name in names - own}
        for extra, names in declared.items()
    }


def test_a_module_of_no_extra_stays_an_import_error():
    with pytest.raises(ModuleNotFoundError, match="nothing_of_this_name"), extras.needed():
        __import__("nothing_of_this_name")
    assert extras.how_to_install("matplotlib.figure", "frontier") == (
        "matplotlib is not installed: pip install 'raytrain-plus[frontier]'"
    )
