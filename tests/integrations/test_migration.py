"""The guide's pages for those who come from other tools: their programs run, before and after."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from tests.algorithms.side import forget, import_transformers

import_transformers()
for library in ("lightning.pytorch", "accelerate"):
    pytest.importorskip(library)
forget()

GUIDE = Path(__file__).parents[2] / "docs" / "guide"
PAGES = ["from-lightning", "from-ray-train", "from-hf-trainer"]


def programs(page):
    text = (GUIDE / f"{page}.md").read_text()
    return dict(re.findall(r'```python title="(\w+)\.py"\n(.*?)```', text, re.DOTALL))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES)
def test_the_programs_of_a_page_train(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "before", raising=False)
    found = programs(page)
    assert set(found) == {"before", "after"}
    for name, program in found.items():
        (tmp_path / f"{name}.py").write_text(program)
    for name in found:
        runpy.run_path(str(tmp_path / f"{name}.py"), run_name="__main__")
        assert re.search(r"\d\.\d", capsys.readouterr().out), name
    assert list((tmp_path / "runs").glob("*/journal*"))
    sys.modules.pop("before", None)
