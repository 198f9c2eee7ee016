"""Tasks that a process which serves one run after another has to get over."""

from torch.nn import functional

from tests.end_to_end.tasks import Momentum


class Spoils(Momentum):
    """Leaves something behind that nothing can undo."""

    def forward(self, model, batch):
        functional.layer_norm = lambda x, *_: x
        return super().forward(model, batch)


class Raises(Momentum):
    def forward(self, *_):
        raise RuntimeError("a user's own error")
