"""The tutorial and the guide show files and commands that this version has."""

import ast
import runpy
import sys
from itertools import pairwise

import click
import pyarrow.parquet as pq
import pytest
import typer.main
import yaml

from raytrain_plus import ElasticTrainer
from raytrain_plus.algorithms.naming import parse_algorithm
from raytrain_plus.algorithms.registry import ALGORITHMS
from raytrain_plus.cli.commands import app
from raytrain_plus.configure import check_task
from raytrain_plus.elastic.protocol.faults import parse_faults
from raytrain_plus.task import load_task
from tests import tutorial

README = tutorial.ROOT / "docs/algorithms/README.md"
PAGES = sorted(tutorial.TUTORIAL.glob("*.md"))
DOCS = [
    tutorial.ROOT / "README.md",
    *sorted((tutorial.ROOT / "docs").rglob("*.md")),
]


def parse(words):
    """Parse a command as the command line does, without running it."""
    command, info = typer.main.get_command(app), "raytrain-plus"
    while isinstance(subcommands := getattr(command, "commands", None), dict):
        if not words or words[0] not in subcommands:
            raise click.UsageError(f"no command {words[:1]}")
        info, command, words = words[0], subcommands[words[0]], words[1:]
    command.make_context(info, list(words))
    for option, value in pairwise(words):
        if option == "--algorithm" and value.partition(":")[0] in ALGORITHMS:
            parse_algorithm(value)


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)
def test_each_command_of_a_page_parses(page):
    for words in tutorial.commands(page):
        try:
            parse(words)
        except Exception as error:  # noqa: BLE001 - typer has a copy of click's errors
            pytest.fail(f"raytrain-plus {' '.join(words)}: {error}")


def test_pages_have_commands_and_a_wrong_option_does_not_parse():
    assert all(tutorial.commands(page) for page in PAGES)
    with pytest.raises(Exception, match="No such option"):
        parse(["train", "my_task.py:MyTask", "--wokers", "2"])
    with pytest.raises(Exception, match="no command"):
        parse(["trian", "my_task.py:MyTask"])


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)
def test_each_python_block_of_a_page_is_python(page):
    for block in tutorial.blocks(page):
        if block.language == "python":
            ast.parse(block.text)


CARDS = sorted(set((tutorial.ROOT / "docs/algorithms").glob("*.md")) - {README})


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_the_python_block_of_a_card_makes_its_algorithm(card):
    (block,) = [block for block in tutorial.blocks(card) if block.language == "python"]
    (statement,) = ast.parse(block.text).body
    call = statement.value
    assert call.func.id == "ElasticTrainer"
    assert not call.args
    assert {one.arg for one in call.keywords} <= set(ElasticTrainer.__init__.__annotations__)
    (made,) = call.keywords[-1].value.elts
    settings = {one.arg: ast.literal_eval(one.value) for one in made.keywords}
    assert ALGORITHMS[made.func.id](**settings).name == made.func.id


def test_each_yaml_block_of_the_page_about_faults_is_a_schedule():
    page = tutorial.ROOT / "docs/guide/faults.md"
    (block,) = [block for block in tutorial.blocks(page) if block.language == "yaml"]
    assert [fault.action for fault in parse_faults(yaml.safe_load(block.text))] == [
        "kill", "drain", "slow", "add",
    ]  # fmt: skip


def test_the_page_about_sweeps_shows_the_templates_definition():
    (block,) = [
        b for b in tutorial.blocks(tutorial.TUTORIAL / "sweep.md") if b.language == "python"
    ]
    assert block.text in (tutorial.ROOT / "raytrain_plus/templates/sweep/sweep.py").read_text()


@pytest.fixture
def modules():
    """What a test imports is forgotten afterwards."""
    before = dict(sys.modules)
    yield
    for name in sys.modules.keys() - before.keys():
        if "." not in name and name.endswith("_task"):
            del sys.modules[name]


@pytest.mark.usefixtures("modules")
def test_the_tutorials_data_and_tasks_fit_its_commands(tmp_path, monkeypatch):
    shown = {name: text for page in PAGES for name, text in tutorial.files(page).items()}
    for name, text in shown.items():
        (tmp_path / name).write_text(text)
    named = {
        word
        for page in PAGES
        for words in tutorial.commands(page)
        for word in words
        if ".py:" in word
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    runpy.run_path("make_digits.py")
    for name in named:
        check_task(load_task(name))
    assert {"my_task.py:MyTask", "noisy_task.py:NoisyTask", "slow_task.py:SlowTask"} == named
    assert pq.read_table(tmp_path / "train.parquet").num_rows == 1500
