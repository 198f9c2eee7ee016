"""Generated pages are up to date, and the files that pages name exist."""

import json
import re
import runpy
from pathlib import Path

import pytest

from raytrain_plus.checkpoint.manifest import Manifest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PLACES = ("", "raytrain_plus")
MADE = runpy.run_path(str(DOCS / "generate.py"))["PAGES"]
FOLDERS = ("raytrain_plus", "tests", "benchmarks", "docs", "cluster", "tune_recipes")
TEXTS = (".md", ".py", ".yaml", ".yml", ".toml", ".sh")


@pytest.mark.parametrize("page", MADE, ids=lambda page: page.name)
def test_generated_pages_are_up_to_date(page):
    assert page.read_text() == MADE[page](), "run `python docs/generate.py`"


def test_every_command_has_its_options():
    page = (DOCS / "reference" / "command-line.md").read_text()
    for command in ("train", "status", "data write", "sweep", "node-agent"):
        assert f"## raytrain-plus {command}\n" in page


def test_every_setting_has_its_default_and_its_option():
    page = (DOCS / "reference" / "configuration.md").read_text()
    assert "| `batch_size` | `256` | `--batch-size` | " in page
    assert "| `check_every` | `10` |  | " in page
    assert "| `window` | `8` |  | " in page


def test_the_page_about_checkpoints_has_each_field_of_a_manifest():
    scalars = {"step": 3, "samples": 0, "tokens": 0, "aspects": {}, "optimizer": {}, "groups": []}
    manifest = Manifest(run="r", digest="0" * 64, scalars=scalars, algorithms=(), files=())
    page = (DOCS / "reference" / "checkpoint-format.md").read_text()
    first_cells = [
        line.split("|")[1]
        for line in page.split("## The manifest")[1].splitlines()
        if line.startswith("| `")
    ]
    assert {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)} == set(
        json.loads(manifest.dump())
    )


def missing_files(text):
    """Return the files that a page names but that do not exist."""
    named = {
        *re.findall(r"`((?:\w+/)+\w+\.py)`", text),
        *re.findall(r"\b(docs/[\w/]+\.md)\b", text),
    }
    return {name for name in named if not any((ROOT / top / name).exists() for top in PLACES)}


def test_the_files_that_a_page_or_a_source_names_exist():
    here = Path(__file__)
    paths = [path for path in ROOT.glob("*") if path.is_file()]
    paths += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    texts = [path for path in paths if path.suffix in TEXTS and path != here]
    texts = [
        path for path in texts if not any(part[0] == "." for part in path.relative_to(ROOT).parts)
    ]
    missing = {str(path): missing_files(path.read_text()) for path in texts}
    assert {name: found for name, found in missing.items() if found} == {}
    assert len(texts) > len(list(DOCS.rglob("*.md")))


def test_a_missing_file_is_noticed():
    assert missing_files("`training/loop.py` and `training/lop.py`") == {"training/lop.py"}
    assert missing_files("see docs/index.md, docs/indes.md") == {"docs/indes.md"}


def broken_links(page):
    """Return the broken relative links of a page outside of the site."""
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    return [link for link in links if not (page.parent / link).exists()]


def test_the_pages_outside_of_the_site_have_no_broken_links(tmp_path):
    pages = [*ROOT.glob("*.md"), *(ROOT / "cluster").rglob("*.md")]
    assert {page.name: broken_links(page) for page in pages if broken_links(page)} == {}
    (tmp_path / "page.md").write_text("[here](page.md#part), [there](gone.md), [far](https://x.y)")
    assert broken_links(tmp_path / "page.md") == ["gone.md"]
