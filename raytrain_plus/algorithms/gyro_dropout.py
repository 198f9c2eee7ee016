"""Gyro dropout.

Lee, Kim, Oh, Kim, Jeung, Noh, Seo 2022, MLSys, "Gyro Dropout: Maximizing Ensemble Effect in Neural
Network Training".
"""

from collections.abc import Callable, Sequence

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from raytrain_plus.algorithms.aspect import Advice, Aspect, AspectError, Step
from raytrain_plus.algorithms.surgery import Surgery
from raytrain_plus.algorithms.times import Time
from raytrain_plus.seeds import seed_for


class GyroDropout(Aspect):
    """Train few subnetworks for many steps; dropout trains very many for one step each.

    The run has `sigma` subnetworks. The features that each of them drops are fixed from the start.
    A round trains `tau` of them at the same time, each on its share of the samples of every batch.
    The next round trains the next `tau`. No subnetwork is trained again before all have been
    trained.

    Attributes:
        sigma: number of subnetworks. Default 256.
        tau: number of subnetworks that a round trains; must divide `sigma`. Default 16.
        p: the fraction of features that is dropped, in (0, 1). None for each `Dropout`'s own.
            Default None.
        interval: how long a round lasts. None, as in the paper, for `tau / sigma` of the run, so
            that each subnetwork is trained in one round. Default None.
    """

    sigma: int = Field(default=256, ge=1)
    tau: int = Field(default=16, ge=1)
    p: float | None = Field(default=None, gt=0, lt=1)
    interval: Time | None = None

    @model_validator(mode="after")
    def _tau_divides_sigma(self) -> "GyroDropout":
        _check(self.sigma, self.tau)
        return self

    def fit(self, step: Step) -> Advice:
        """Give each `Dropout` its subnetworks."""
        surgery = apply_gyro_dropout(step.model, _draw_seed(step.generator(self)), p=self.p)
        surgery.warn_if_unchanged(self.name, "Dropout layers with a rate between 0 and 1")
        yield
        surgery.undo()

    def batch(self, step: Step) -> Advice:
        """Choose the subnetworks of this part's samples."""
        layers = gyro_layers(step.model)
        if not layers:
            return
        rows = len(next(iter(step.batch.values())))
        chosen = subnetworks_of_round(self._round(step), self.sigma, self.tau, layers[0].pool)
        # Each part starts with the subnetwork after the previous part's last one, so that small
        # parts together use them all.
        first = step.logical_rank * rows % self.tau
        before = [layer.chosen for layer in layers]
        try:
            choose_subnetworks(step.model, [*chosen[first:], *chosen[:first]])
            yield
        finally:
            for layer, subnetworks in zip(layers, before, strict=True):
                layer.chosen = subnetworks

    def _round(self, step: Step) -> int:
        clock = step.clock
        if self.interval is None:
            return step.number // max(1, clock.total_steps * self.tau // self.sigma)
        return step.number // max(1, clock.step_of(self.interval))


def apply_gyro_dropout(model: nn.Module, seed: int, *, p: float | None = None) -> Surgery:
    """Make each `nn.Dropout` drop what the chosen subnetworks drop, in place.

    Until `choose_subnetworks` is called, the layers are plain dropout.

    Args:
        model: the model.
        seed: determines what each subnetwork drops.
        p: the fraction of features to drop, in (0, 1); None for each layer's own.

    Returns:
        What was done, and can be undone.

    Raises:
        AspectError: `p` is not in (0, 1).
    """
    if p is not None and not 0 < p < 1:
        raise AspectError(f"p is {p}, and must be above 0 and below 1: write 0.5")
    surgery = Surgery(model)
    for name, layer in surgery.candidates(nn.Dropout, _GyroDropout):
        if 0 < layer.p < 1:
            surgery.mix_in(
                name,
                layer,
                _GyroDropout,
                pool=seed,
                place=name,
                rate=layer.p if p is None else p,
                chosen=(),
                # A compiler would treat the choice as a constant and compile again at each step.
                drop=torch.compiler.disable(_drop),  # type: ignore[no-untyped-call]
            )
    return surgery


def choose_subnetworks(model: nn.Module, chosen: Sequence[int]) -> None:
    """Make sample i of the following batches train the subnetwork `chosen[i % len(chosen)]`.

    Args:
        model: a model with gyro dropout.
        chosen: numbers of subnetworks, from 0; none for plain dropout.
    """
    for layer in gyro_layers(model):
        layer.chosen = tuple(chosen)


def subnetworks_of_round(number: int, sigma: int, tau: int, seed: int) -> list[int]:
    """Return which `tau` of `sigma` subnetworks are trained in a round.

    Args:
        number: the round's number, from 0; after `sigma / tau` rounds all have been trained.
        sigma: number of subnetworks.
        tau: number of subnetworks that a round trains.
        seed: determines the order.

    Raises:
        AspectError: `tau` does not divide `sigma`.
    """
    try:
        _check(sigma, tau)
    except ValueError as error:
        raise AspectError(str(error)) from error
    cycle, turn = divmod(number, sigma // tau)
    generator = torch.Generator().manual_seed(seed_for(seed, "gyro cycle", cycle))
    order = torch.randperm(sigma, generator=generator)
    return [int(i) for i in order[turn * tau : (turn + 1) * tau]]


def gyro_layers(model: nn.Module) -> list["_GyroDropout"]:
    """Return a model's layers of gyro dropout."""
    return [module for module in model.modules() if isinstance(module, _GyroDropout)]


class _GyroDropout:
    """A `Dropout` that drops what each sample's subnetwork drops.

    Attributes:
        pool, place: the seed of all subnetworks, and this layer's name.
        rate: the fraction of features that is dropped.
        chosen: the subnetworks in use; the samples use them in turn.
        drop: computes the output in training.
    """

    training: bool
    pool: int
    place: str
    rate: float
    chosen: tuple[int, ...]
    drop: Callable[["_GyroDropout", Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self, x) if self.training else x


def _drop(layer: _GyroDropout, x: Tensor) -> Tensor:
    if not layer.chosen:
        return nn.functional.dropout(x, layer.rate)
    chosen = layer.chosen[: len(x)]
    masks = torch.stack([_mask(layer, subnetwork, x) for subnetwork in chosen])
    turns = torch.arange(len(x), device=x.device) % len(chosen)
    return x * masks[turns]


def _mask(layer: _GyroDropout, subnetwork: int, like: Tensor) -> Tensor:
    """Return a subnetwork's factors for the features of one sample: 0 or 1 / (1 - p)."""
    seed = seed_for(layer.pool, f"gyro dropout {layer.place}", subnetwork)
    generator = torch.Generator(like.device).manual_seed(seed)
    drawn = torch.rand(like.shape[1:], generator=generator, device=like.device)
    return (drawn >= layer.rate).to(like.dtype) / (1 - layer.rate)


def _check(sigma: int, tau: int) -> None:
    if sigma % tau:
        raise ValueError(
            f"tau={tau} does not divide sigma={sigma}, so that some subnetworks would be trained "
            "longer than others: choose a divisor, as 16 of 256"
        )


def _draw_seed(generator: torch.Generator) -> int:
    return int(torch.randint(1 << 62, (), generator=generator))
