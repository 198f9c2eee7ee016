"""Tasks that harm a process that serves one run after another."""

from torch.nn import functional

from tests.end_to_end.tasks import Momentum


class Spoils(Momentum):
    """Leaves a change in the process that cannot be undone."""

    def forward(self, model, batch):
        functional.layer_norm = lambda x, *_: x
        return super().forward(model, batch)


class Raises(Momentum):
    def forward(self, *_):
        raise RuntimeError("a user's own error")
