"""Draws from the symmetric Dirichlet distribution; with two shares it is the Beta distribution."""

import torch
from torch import Tensor


def dirichlet(alpha: float, samples: int, shares: int, generator: torch.Generator) -> Tensor:
    """Draw shares that sum to one.

    Args:
        alpha: the concentration, above 0. 1 is uniform; below 1, one share tends to be large; above
            1, shares tend to be equal.
        samples: number of draws, n.
        shares: number of shares per draw.
        generator: of the CPU.

    Returns:
        Shares of shape (n, shares), float32.
    """
    # In float64, since a small alpha underflows in float32. torch.distributions takes no generator.
    concentration = torch.full((samples, shares), alpha, dtype=torch.float64)
    return torch._sample_dirichlet(concentration, generator).float()  # noqa: SLF001
