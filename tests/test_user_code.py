"""User code is identified by its files: all files that a task imports count, and no others."""

import json
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest

from raytrain_plus import user_code
from raytrain_plus.user_code import CodeFile, difference, is_users, is_users_module

TASK = """
from rates import factor
import package.parts
from package import sizes as known

class Base:
    pass

class Mine(Base):
    def model(self):
        from lazily import build
        return build()
"""
FILES = {
    "mine.py": TASK,
    "rates.py": "def factor(progress):\n    return 1 - progress\n",
    "package/__init__.py": "",
    "package/parts.py": "from . import deep\nif deep is None:\n    import nowhere\n",
    "package/deep.py": "",
    "package/sizes.py": "",
    "lazily.py": "def build():\n    raise RuntimeError\n",
    "unrelated.py": "",
}


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def code_of(folder, program="from mine import Mine; mine = Mine()"):
    """Return the files that a new process finds, with their hashes."""
    program = textwrap.dedent(f"""
        import json, os
        from raytrain_plus import user_code
        {program}
        for found in (user_code.code_behind([mine], [os.getcwd()]), user_code.loaded_code()):
            print(json.dumps({{name: file.sha256 for name, file in found.items()}}))
    """)
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_only_files_that_a_task_imports_count(folder):
    found, loaded = code_of(folder)
    imported = {"mine.py", "rates.py", "package/__init__.py", "package/parts.py", "package/deep.py"}
    imported |= {"package/sizes.py"}
    assert set(found) == {*imported, "lazily.py"}
    assert set(loaded) == imported  # later imports are not there yet
    assert all(found[name] == digest for name, digest in loaded.items())


@pytest.mark.parametrize("name", ["mine.py", "rates.py", "package/deep.py", "lazily.py"])
def test_each_change_of_a_file_is_reported_with_its_name(folder, name):
    before, _ = code_of(folder)
    assert code_of(folder)[0] == before
    (folder / name).write_text(FILES[name] + "# changed\n")
    after, _ = code_of(folder)
    assert {name for name in before if before[name] != after[name]} == {name}


def test_a_change_of_a_file_that_is_not_imported_is_not_reported(folder):
    before = code_of(folder)
    (folder / "unrelated.py").write_text("changed = True\n")
    assert code_of(folder) == before


def test_the_code_of_objects_in_a_task_counts(folder):
    (folder / "held.py").write_text("class Held:\n    pass\n")
    program = "import held, rates; mine = held.Held(); mine.one = rates.factor"
    assert set(code_of(folder, program)[0]) == {"held.py", "rates.py"}


def test_a_script_counts_with_what_it_imports(folder):
    (folder / "script.py").write_text(
        "import json, os\nfrom raytrain_plus import user_code\n" + TASK + "\n"
        "found = user_code.code_behind([Mine()], [os.getcwd()])\n"
        "print(json.dumps(sorted(found)))\n"
    )
    command = [sys.executable, "script.py"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    assert {"script.py", "rates.py", "lazily.py"} <= set(json.loads(ran.stdout))


def test_a_class_without_a_source_has_none():
    space = {"__name__": "nowhere"}
    exec("class Mine:\n    pass", space)
    assert user_code.code_behind([space["Mine"]()], []) == {}


def test_user_code_is_neither_pythons_nor_installed_nor_ours(tmp_path):
    assert is_users(tmp_path / "mine.py")
    assert is_users(Path(sys.prefix).parent / "mine.py")
    assert not is_users(Path(json.__file__))
    assert not is_users(Path(np.__file__))
    assert not is_users(Path(user_code.__file__))


def test_only_files_that_both_have_can_differ():
    meant = {"a.py": CodeFile("/driver/a.py", "1"), "b.py": CodeFile("/driver/b.py", "2")}
    assert difference(meant, {"a.py": CodeFile("/worker/a.py", "1")}) == ""
    assert difference(meant, {"c.py": CodeFile("/worker/c.py", "3")}) == ""
    told = difference(meant, {"b.py": CodeFile("/worker/b.py", "3")})
    assert told == "b.py has changed (/worker/b.py)"


class Circle:
    """Garbage whose finalizer lets another thread continue."""

    def __init__(self):
        self.itself = self

    def __del__(self):
        sum(range(2000))


PARSED_BY_THREADS = """
import gc, sys
from concurrent.futures import ThreadPoolExecutor
from tests.test_user_code import Circle
from raytrain_plus import user_code

source = b"\\n".join(b"import module_%d" % number for number in range(2000))

def ours():
    return len(list(user_code._imports(source, "own", is_package=False)))

def at_once(parse):
    def with_garbage(_):
        for _ in range(20):
            Circle()
        return parse()
    with ThreadPoolExecutor(8) as threads:
        return min(threads.map(with_garbage, range(48)))

sys.setswitchinterval(1e-6)
gc.set_threshold(50)
print(at_once(ours))
"""


def test_runs_that_start_in_several_threads_read_their_code():
    """Python 3.11 confuses syntax trees that several threads build, and raises a SystemError.

    There is no control, because `ast.parse` itself fails in most runs of this program, but not in
    all.
    """
    ran = subprocess.run(
        [sys.executable, "-c", PARSED_BY_THREADS],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert ran.stdout == "2000\n"


def test_only_known_files_can_be_reported_as_edited():
    thing = test_only_known_files_can_be_reported_as_edited
    name = f"{__name__.replace('.', '/')}.py"
    code = {name: CodeFile(__file__, "1"), "other.py": CodeFile("/other.py", "2")}
    edited = user_code.as_if_edited(code, thing)
    assert difference(code, edited) == f"{name} has changed ({__file__})"
    assert edited[name] == user_code.as_if_edited(edited, thing)[name]
    # The control: an unknown file is not reported as edited.
    assert user_code.as_if_edited({"other.py": code["other.py"]}, thing).keys() == {"other.py"}
    assert difference(code, user_code.as_if_edited({"other.py": code["other.py"]}, thing)) == ""


def test_a_module_is_the_users_if_its_file_is(monkeypatch, tmp_path):
    places = {
        "mine": tmp_path / "mine.py",
        "packaged": tmp_path / "dist-packages" / "packaged.py",
        "installed": tmp_path / "site-packages" / "installed.py",
    }
    for name, file in places.items():
        module = types.ModuleType(name)
        module.__file__ = str(file)
        monkeypatch.setitem(sys.modules, name, module)
    found = [n for n in (*places, "__main__", "json", "sys", "nowhere") if is_users_module(n)]
    assert found == ["mine", "__main__"]
