"""Pages that are made from the code are those of this code."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PLACES = ("", "raytrain_plus")


def test_the_page_about_the_command_line_is_of_this_command_line():
    made = runpy.run_path(str(DOCS / "generate.py"))
    assert made["PAGE"].read_text() == made["command_line"](), "run `python docs/generate.py`"


def test_every_command_is_in_it():
    page = (DOCS / "reference" / "command-line.md").read_text()
    for command in ("train", "status", "data write", "sweep", "node-agent"):
        assert f"## raytrain-plus {command}\n" in page


def missing_files(text):
    """Return the files that a page names, and that are not there."""
    named = set(re.findall(r"`((?:\w+/)+\w+\.py)`", text))
    return {name for name in named if not any((ROOT / top / name).exists() for top in PLACES)}


def test_the_files_that_the_docs_name_are_there():
    pages = [*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    missing = {page.name: missing_files(page.read_text()) for page in pages}
    assert {name: found for name, found in missing.items() if found} == {}
    assert missing_files("`training/loop.py` and `training/lop.py`") == {"training/lop.py"}
