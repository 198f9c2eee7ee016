"""One rule for names: valid names are used unchanged; invalid ones are refused at once."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.cli import app
from raytrain_plus.configure import ConfigError, run_folder
from raytrain_plus.elastic.client import control
from raytrain_plus.frontier.definition import Sweep
from raytrain_plus.names import InvalidNameError, check_name, possible_folders
from raytrain_plus.observe.journal import FILE_NAME, Journal
from raytrain_plus.storage.errors import StoreError
from raytrain_plus.storage.store import Store

GOOD = ["base", "a-1.b_2", "mit Leerzeichen", "ärger", "実験", "a@b+c=d,(e)", "x" * 200, "0"]
BAD = [
    *("", ".", "..", "a/b", "a/../b", "/abs", "base::x", "memory:", "memory://x", "a\\b", "-rf"),
    *("--json", "~", "~root", ".hidden", "a ", " a", "a.", "a\nb", "a\0b", "a\x1b[31mb", "a%2eb"),
    *("a?b", "a#b", "a*", "a[b]", "$(id)", "a;b", "a'b", 'a"b', "x" * 201, "é" * 101, "e\u0301"),
    *("a\u202eb", "a\u200bb", "a\u2028b", "\ud800"),
]


@pytest.mark.parametrize("name", GOOD)
def test_good_names_become_one_folder_unchanged(tmp_path, name):
    assert check_name(name) == name
    assert run_folder(str(tmp_path), name) == tmp_path / name
    (tmp_path / name).mkdir()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    place = Store(tmp_path / name).inside("checkpoint_00000001")
    assert place.local_path == tmp_path / name / "checkpoint_00000001"


@pytest.mark.parametrize("name", BAD)
def test_bad_names_are_refused_before_files_are_touched(tmp_path, name):
    with pytest.raises(ConfigError, match="run name"):
        run_folder(str(tmp_path / "storage"), name)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InvalidNameError, match="a name has letters and digits"):
        check_name(name)
    with pytest.raises(ValueError, match="sweep name"):
        Sweep(name=name, task="a:B", space=None, objective=None)


@given(st.text(max_size=20))
def test_a_name_that_passes_is_one_part_of_a_path_of_a_url_and_of_a_command(name):
    with contextlib.suppress(InvalidNameError):
        check_name(name)
        assert Store("/runs").inside(name).local_path.parent == Store("/runs").local_path
        assert Store("/runs").inside(name).local_path.name == name
        assert not set(name) & set("/\\:%?#*[]\0\n")
        assert not name.startswith(("-", ".", "~", " "))


def test_a_run_is_given_by_its_name_or_by_its_folder(tmp_path):
    for folder in ("here", "colon:s"):
        (tmp_path / folder).mkdir()
        Journal(tmp_path / folder).close()
    assert control.folder_of("here", str(tmp_path)) == tmp_path / "here"
    assert control.folder_of(str(tmp_path / "colon:s"), "elsewhere") == tmp_path / "colon:s"
    # A path does not mean a folder in the storage: it is a folder itself.
    with pytest.raises(FileNotFoundError):
        control.folder_of("x/../here", str(tmp_path))
    assert len(possible_folders("x/../here", tmp_path)) == 1
    for run in ("base::x", "-x", "-x/y", "a\nb", "a\x07/b", "%2e"):
        with pytest.raises(InvalidNameError):
            control.folder_of(run, str(tmp_path))


@pytest.mark.parametrize("command", ["status", "stop", "checkpoint", "attach", "report"])
def test_commands_refuse_a_name_here_and_before_they_reach_a_cluster(
    tmp_path, monkeypatch, command
):
    monkeypatch.chdir(tmp_path)
    elsewhere = ["--address", "http://127.0.0.1:9"] if command != "report" else []
    done = CliRunner().invoke(app, [command, "base::x", *elsewhere])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: run name 'base::x' holds ':' (colon)")


@pytest.mark.parametrize("folder", ["", ".", "..", "a/b", "../a", "a\0"])
def test_paths_that_lead_out_of_a_store_are_refused(tmp_path, folder):
    with pytest.raises(StoreError, match="no name of a folder"):
        Store(tmp_path).inside(folder)


def test_a_local_path_is_never_read_as_a_chain_of_file_systems(tmp_path):
    victim, mine = tmp_path / "base", tmp_path / "base::v2"
    for folder in (victim, mine):
        (folder / "checkpoint_00000001").mkdir(parents=True)
    (victim / FILE_NAME).write_text("a week of training")
    assert Store(mine).local_path == mine
    checkpointer.remove(Store(mine).inside("checkpoint_00000001"))
    assert (victim / FILE_NAME).exists()
    assert (victim / "checkpoint_00000001").exists()
    assert not (mine / "checkpoint_00000001").exists()
