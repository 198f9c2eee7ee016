"""Where every random number comes from.

The policy: a draw may depend on the run's seed, on its purpose, and on its place in the run. It
never depends on which worker makes it, nor on earlier draws. So each place that needs random
numbers makes a fresh generator from a hash of exactly these values:

- one logical rank's part of a step (dropout, augmentation): `(seed, "step", step, logical rank)`;
- an update (noise in an optimizer, an aspect's `update` advice): `(seed, "update", step)`; torch's
  own optimizers draw nothing, so that without aspects nothing is seeded for them;
- one logical rank's part of an evaluation: `(seed, "evaluate", step, logical rank)`; what a metric
  draws when it is computed: `(seed, "metrics", step)`;
- what the task draws when it is made: `(seed, "task")`;
- the model's initial weights: `(seed, "model")`; the newcomer's probe: `(seed, "probe")`;
- which logical rank is computed a second time in a step, and by whom: `(seed, "audit", step)`;
- the order of samples: `(seed, "files")`, `(seed, "lane", epoch, lane)` and so on.

No generator's state is carried from one place to the next. So no state has to move when a logical
rank moves to another worker.
"""

import hashlib
import random

import numpy as np
import torch


def seed_for(seed: int, purpose: str, *place: int) -> int:
    """Return the 64-bit seed of one place in a run: a hash of all arguments.

    It is equal on every machine and in every version: BLAKE2b over an unambiguous text.
    """
    text = ":".join([str(seed), purpose, *map(str, place)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def seed_global_generators(seed: int) -> None:
    """Set torch's (CPU and CUDA), Python's and NumPy's global generators from a 64-bit seed.

    A user's forward draws from these, so they are seeded before each logical rank's part.
    """
    # Not torch.manual_seed: it formats a stack trace each time, which takes half a millisecond.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 - the legacy global generator is the point
