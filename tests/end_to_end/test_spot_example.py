"""The example of a spot instance: its run is killed with its process, and resumed on workers."""

import runpy

from tests import tutorial


def test_a_run_whose_machine_is_gone_is_resumed_to_the_same_bits(storage, capsys):
    example = runpy.run_path(str(tutorial.ROOT / "examples" / "spot_instance.py"))
    # The victim is one process without Ray, which starts faster; then two workers go on.
    example["main"](["--storage", str(storage), "--steps", "300", "--workers", "0", "2"])
    told = capsys.readouterr().out
    assert "killed after" in told
    assert "every loss is equal" in told
