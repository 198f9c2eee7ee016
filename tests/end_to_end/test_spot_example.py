"""The example of a spot instance: its run is killed with its process, and resumed on workers."""

import importlib
import sys

from tests import tutorial


def test_a_run_whose_machine_is_gone_is_resumed_to_the_same_bits(storage, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(tutorial.ROOT / "examples"))
    # Imported, as its run's identity names the file of the task: "spot_instance.py".
    example = importlib.import_module("spot_instance")
    # The victim is one process without Ray, which starts faster; then two workers go on.
    example.main(["--storage", str(storage), "--steps", "300", "--workers", "0", "2"])
    del sys.modules["spot_instance"]
    told = capsys.readouterr().out
    assert "killed after" in told
    assert "every loss is equal" in told
