"""Pages that are made from the code are those of this code."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_about_the_command_line_is_of_this_command_line():
    made = runpy.run_path(str(DOCS / "generate.py"))
    assert made["PAGE"].read_text() == made["command_line"](), "run `python docs/generate.py`"


def test_every_command_is_in_it():
    page = (DOCS / "reference" / "command-line.md").read_text()
    for command in ("train", "status", "data write", "sweep", "node-agent"):
        assert f"## raytrain-plus {command}\n" in page
