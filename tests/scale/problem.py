"""What the simulated workers train: a small vector, with the real schedule and the real tree."""

import functools
import hashlib

import numpy as np

from raytrain_plus.training.halving import halving
from raytrain_plus.training.tree import fold

LENGTH = 12  # elements of a small problem's gradient
LOSS, PAUSE, SNAPSHOT = -3, -2, -1  # columns after the gradient


class Problem:
    """Gradients that depend on the state, the step and the logical rank.

    Args:
        seed: of the numbers.
        ranks: how many logical ranks there are.
        length: elements of the gradient.
    """

    def __init__(self, seed, ranks, length=LENGTH):
        self.ranks, self.length = ranks, length
        self._seed = seed
        self.start = np.ones(length, np.float32)
        self.leaves = functools.lru_cache(maxsize=4)(self._leaves)
        self.sums = functools.lru_cache(maxsize=4096)(self._sums)
        self.schedule = functools.lru_cache(maxsize=8)(self._schedule)

    def _leaves(self, state, step):
        """Return each rank's vector [ranks, length + 3]."""
        random = np.random.default_rng((self._seed, step))
        noise = random.standard_normal((self.ranks, self.length + 3), np.float32)
        noise[:, : self.length] *= 1 + np.frombuffer(state, np.float32)
        noise[:, [PAUSE, SNAPSHOT]] = 0
        return noise

    def _sums(self, state, step, start, stop):
        """Return the sum of a subtree of ranks."""
        return fold(list(self.leaves(state, step)[start:stop]), np.add)

    def _schedule(self, bounds):
        plan = halving([range(a, b) for a, b in bounds], self.length + 3)
        return plan, [plan.rounds(place) for place in range(len(bounds))]

    def partial(self, state, step, ranks):
        """Return the sum of each maximal subtree, by the schedule's slots."""
        data = state.tobytes()
        return [self.sums(data, step, a, b).copy() for a, b in ranks]

    def update(self, state, total):
        return (state * np.float32(0.9) - total[: self.length] * np.float32(0.01)).astype(
            np.float32
        )

    def undisturbed(self, steps):
        """Return the states after 0 to `steps` steps, and the losses, by `fold` alone."""
        states, losses = [self.start], []
        for step in range(1, steps + 1):
            total = self._sums(states[-1].tobytes(), step, 0, self.ranks)
            states.append(self.update(states[-1], total))
            losses.append(float(total[LOSS]))
        return states, losses


def digest_of(state):
    return hashlib.sha256(state.tobytes()).hexdigest()


def metrics_of(state):
    return {"sum": float(state.sum())}
