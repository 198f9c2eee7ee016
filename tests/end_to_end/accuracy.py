"""A metric with the interface of torchmetrics.

Importing torchmetrics takes two seconds of CPU, in each of some two hundred workers of these tests.
It is used in `test_command_line.py`, `test_aspects.py` and `tests/training`.
"""

import torch

SUMMED = ("right", "seen")


class Accuracy:
    """The fraction of samples whose label has the largest output."""

    full_state_update = False
    _reductions = dict.fromkeys(SUMMED, torch.sum)

    def __init__(self):
        self.right, self.seen = torch.tensor(0), torch.tensor(0)
        self._defaults = {name: torch.tensor(0) for name in SUMMED}
        self._update_count = 0

    @property
    def metric_state(self):
        return {name: getattr(self, name) for name in SUMMED}

    @property
    def update_count(self):
        return self._update_count

    def to(self, device):
        for name in SUMMED:
            setattr(self, name, getattr(self, name).to(device))
        return self

    def update(self, outputs, target):
        self.right = self.right + (outputs.argmax(dim=1) == target).sum()
        self.seen = self.seen + len(target)
        self._update_count += 1

    def merge_state(self, before):
        self.right, self.seen = self.right + before.right, self.seen + before.seen
        self._update_count += before.update_count

    def compute(self):
        return self.right / self.seen
