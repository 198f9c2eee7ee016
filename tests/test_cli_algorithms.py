"""The command line and algorithms: a user's own, their order, recipes, and a task's settings."""

import json
import sys

import pytest
import yaml
from typer.testing import CliRunner

from raytrain_plus.algorithms import ALGORITHMS
from raytrain_plus.cli import app
from raytrain_plus.frontier.recipe import Recipe, RecipeError, bundled_names, read_recipe
from raytrain_plus.task import import_code

OWN = """
from raytrain_plus.algorithms import Aspect

class Halve(Aspect):
    factor: float = 0.5
    runs_after = ("LabelSmoothing",)

    def loss(self, step):
        yield
        step.losses = step.losses * self.factor

class NoAspect:
    pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_methods.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield tmp_path
    sys.modules.pop("own_methods", None)


def ask(*arguments):
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def refused(*arguments):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2
    return result.stderr


def test_all_algorithms_are_listed_with_their_settings():
    listed = ask("algorithms")["algorithms"]
    assert listed.keys() == ALGORITHMS.keys()
    assert listed["LabelSmoothing"] == {"smoothing": 0.1}
    assert "smoothing=0.1" in CliRunner().invoke(app, ["algorithms"]).stdout


def test_the_order_of_algorithms_is_explained_whatever_their_order_on_the_command_line(folder):  # noqa: ARG001
    own = "own_methods:Halve:factor=0.25"
    one = ask("algorithms", "--explain", own, "LabelSmoothing:smoothing=0.2", "GradientClipping")
    other = ask("algorithms", "--explain", "GradientClipping", "LabelSmoothing", own)
    assert one == other
    assert one["weave"]["loss"] == ["LabelSmoothing", "Halve"]
    assert one["weave"]["update"] == ["GradientClipping"]
    text = CliRunner().invoke(app, ["algorithms", "--explain", own, "LabelSmoothing"]).stdout
    assert "LabelSmoothing > Halve" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--explain"], ["needs the names"]),
        (["Nope"], ["no algorithm is called 'Nope'", "module:Class"]),
        (["nowhere:Halve"], ["nowhere", "cannot be imported"]),
        (["own_methods:Gone"], ["no attribute 'Gone'"]),
        (["own_methods:NoAspect"], ["not a class derived from"]),
        (["own_methods:Halve:factor=much"], ["factor", "It has factor=0.5"]),
        (["own_methods.py:Halve:size=1"], ["size", "not permitted"]),
    ],
)
def test_an_unknown_algorithm_is_refused(folder, arguments, words):  # noqa: ARG001
    said = refused("algorithms", *arguments)
    assert all(word in said for word in words), said


def test_all_recipes_of_the_package_can_be_read():
    assert {"cluttered_digits/baseline", "byte_gpt/baseline"} <= set(bundled_names())
    for name in bundled_names():
        recipe = read_recipe(name)
        assert recipe.about
        recipe.aspects()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"duration": "1ep"}, ["batch_size"]),
        ({"duration": "soon", "batch_size": 8}, ["duration", "soon"]),
        ({"duration": "1ep", "batch_size": 8, "speed": 3}, ["speed"]),
        ([1, 2], ["dictionary"]),
    ],
)
def test_a_file_that_is_not_a_recipe_is_refused(folder, content, words):
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(RecipeError) as error:
        read_recipe("mine.yaml")
    assert all(word in str(error.value) for word in ["mine.yaml", *words])


def test_a_missing_recipe_is_refused_with_a_list_of_recipes():
    with pytest.raises(RecipeError, match="byte_gpt/baseline"):
        read_recipe("byte_gpt/warm")


def test_a_recipe_holds_a_users_own_algorithm(folder):  # noqa: ARG001
    import_code("own_methods.py")
    recipe = Recipe(
        duration="1ep", batch_size=8, algorithms={"own_methods:Halve": {}, "LabelSmoothing": {}}
    )
    assert [aspect.name for aspect in recipe.aspects()] == ["LabelSmoothing", "Halve"]


def test_code_that_a_recipe_names_is_never_imported_unless_the_command_line_names_it(folder):
    """The second command is the control: there the file is run, because the user names it."""
    (folder / "stranger.py").write_text(
        "import pathlib\npathlib.Path('was-run').touch()\nfrom own_methods import Halve as X\n"
    )
    recipe = {"duration": "1ep", "batch_size": 8, "algorithms": {"stranger.py:X": {}}}
    (folder / "mine.yaml").write_text(yaml.safe_dump(recipe))
    command = ["train", DIGITS, "--recipe", "mine.yaml", "--data", "none.arrow"]
    said = refused(*command)
    assert "stranger.py:X" in said
    assert "--code stranger.py" in said
    assert not (folder / "was-run").exists()
    assert "none.arrow" in refused(*command, "--code", "stranger.py")
    assert (folder / "was-run").exists()


DIGITS = "raytrain_plus.reference.cluttered_digits:ClutteredDigits"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([DIGITS, "--setting", "speed=3"], ["no setting speed", "learning_rate"]),
        ([DIGITS, "--setting", "speed"], ["'speed'", "key=value"]),
        ([DIGITS, "--recipe", "cluttered_digits/none"], ["no recipe", "cluttered_digits/baseline"]),
        (["raytrain_plus.demo.digits:Digits", "--setting", "x=1"], ["make it a dataclass"]),
    ],
)
def test_settings_and_recipes_are_checked_before_the_run_starts(folder, arguments, words):
    said = refused("train", *arguments, "--storage", str(folder))
    assert all(word in said for word in words), said
