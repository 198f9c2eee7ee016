"""What an installed package promises: a quick import, a readable page, and a clear requirement."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from raytrain_plus.configure import ConfigError, check_platform

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SLOW = {"grpc", "numpy", "pyarrow", "pydantic", "ray", "rich", "torch", "typer", "yaml"}


def imported(code):
    """Return the packages that some code imports in a new process."""
    code = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def test_importing_the_package_imports_nothing_slow():
    assert imported("import raytrain_plus") & SLOW == set()
    assert {"torch", "numpy"} <= imported("from raytrain_plus import Task")  # the control


def test_the_page_of_the_package_has_no_link_into_the_repository():
    text = (ROOT / "README.md").read_text()
    links = r"\]\((?!https?://|#)"
    assert re.search(links, text)  # the control: without the substitutions it has some
    for one in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(one["pattern"], one["replacement"], text)
    assert not re.search(links, text)
    assert "[Ray](https://ray.io)" in text
    assert "The tutorial does this step by step" in text


def test_another_system_than_linux_is_refused_by_name():
    check_platform("linux")
    with pytest.raises(ConfigError, match=r"need Linux .* this is darwin: .*--workers 0"):
        check_platform("darwin")


def test_the_lowest_versions_are_those_of_the_check():
    script = (ROOT / ".ci" / "lowest").read_text()
    pattern = re.search(r're\.match\(r"(.*)", needed\)', script)[1]
    demo = PROJECT["project"]["optional-dependencies"]["demo"]
    for needed in [*PROJECT["project"]["dependencies"], *demo]:
        assert re.match(pattern, needed), f"{needed} has no lower bound"
    assert re.match(pattern, "torch") is None
