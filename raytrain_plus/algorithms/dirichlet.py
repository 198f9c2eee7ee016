"""Draws from the symmetric Dirichlet distribution; with two shares it is the Beta distribution."""

import torch
from torch import Tensor


def dirichlet(alpha: float, samples: int, shares: int, generator: torch.Generator) -> Tensor:
    """Draw shares that sum to one.

    Args:
        alpha: the concentration, above 0; 1 is uniform, less favours one share, more equal ones.
        samples: how many draws, n.
        shares: how many shares each has.
        generator: of the CPU.

    Returns:
        Shares of shape (n, shares), float32.
    """
    # In float64, since a small alpha underflows. torch.distributions takes no generator.
    concentration = torch.full((samples, shares), alpha, dtype=torch.float64)
    return torch._sample_dirichlet(concentration, generator).float()  # noqa: SLF001
