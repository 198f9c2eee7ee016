"""The one order in which a sum over logical ranks is ever taken.

Floating-point addition is not associative, so a sum whose order follows the number of workers has
other bits on other numbers of workers. Here the order is a binary tree fixed by the number of
leaves alone: a range of more than one leaf is split at the largest power of two below its length.
Its nodes are thus the aligned blocks `[j * 2**k, min((j + 1) * 2**k, leaves))`.

The owner of the leaves `[start, stop)` sums the *maximal subtrees* inside (`Accumulator`), and the
holder of all these partial sums finishes the tree (`additions`): the same additions in the same
association as on one worker (`fold`).

Prior art: a fixed tree over the elements that makes MPI reductions independent of the number of
cores (Stelz, Binary Tree Summation and its successor ReproRed, for scalars); tree-based invariant
kernels (TBIK), the same idea across tensor-parallel sizes. The tree has the shape of the Merkle
tree of RFC 6962, section 2.1, which is chosen there too because it grows without moving a node.
"""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
Integers = npt.NDArray[np.int64]


def maximal_subtrees(start: int, stop: int, leaves: int) -> list[tuple[int, int]]:
    """Cut a range of leaves into the fewest nodes of the tree.

    Args:
        start: First leaf of the range.
        stop: One past its last leaf.
        leaves: Number of leaves of the whole tree.

    Returns:
        The nodes `(start, stop)`, left to right; none lies in a larger node inside the range.

    Raises:
        ValueError: The range is empty or not inside the tree.
    """
    _check_range(start, stop, leaves)
    nodes = []
    while start < stop:
        size = start & -start or 1 << leaves.bit_length()
        while min(start + size, leaves) > stop:
            size //= 2
        nodes.append((start, min(start + size, leaves)))
        start = nodes[-1][1]
    return nodes


def subtree_count(start: Integers, stop: Integers | int, leaves: int) -> Integers:
    """Count the maximal subtrees of many ranges at once: `len(maximal_subtrees(...))` of each.

    The closed form is that of a bottom-up segment tree. Take the leaves just outside the range and
    the two children, of their lowest common ancestor, that they lie in. Left of the split between
    these, each zero bit of the outer leaf (below the split's level) stands for a subtree that
    hangs to the right of the path up to the split; right of it, each one bit does likewise.

    Args:
        start: First leaf of each range, any shape.
        stop: One past the last leaf of each range, of a shape that broadcasts with `start`.
            `0 <= start < stop <= leaves` is the caller's promise: this is planning's inner loop.
        leaves: Number of leaves of the whole tree, below `2**51`.

    Returns:
        The counts, of the broadcast shape.
    """
    sentinel = 1 << leaves.bit_length()  # gives leaf -1, outside on the left, an ancestor too
    # A range that ends with the tree has no leaf outside on the right. Its last leaf stands in,
    # and everything right of the split is one node, cut off by the end of the tree.
    to_end = np.equal(stop, leaves)
    ancestor = (start + (sentinel - 1)) ^ (stop + sentinel - to_end)
    _, level = np.frexp(ancestor)
    below = np.left_shift(np.int64(1), level - 1, dtype=np.int64) - 1
    counts: Integers = np.add(
        np.bitwise_count(-start & below),
        np.where(to_end, 1, np.bitwise_count(stop & below)),
        dtype=np.int64,
    )
    return counts


def additions(subtrees: Sequence[tuple[int, int]], leaves: int) -> list[tuple[int, int]]:
    """List the additions that finish the tree from the sums of a partition into nodes.

    A node's inside is a tree of the same shape, so a part of the tree is finished by the same
    call: subtract the node's start from every bound and pass its length as `leaves`.

    Args:
        subtrees: Nodes `(start, stop)` that partition `[0, leaves)`, left to right; slot `i` holds
            the sum of the leaves of `subtrees[i]`.
        leaves: Number of leaves of the whole tree.

    Returns:
        Pairs `(destination, source)`, to be executed in order as
        `slot[destination] += slot[source]`, left operand first. The total ends up in slot 0.

    Raises:
        ValueError: The subtrees do not partition `[0, leaves)`, or one is not a node of the tree.
    """
    order: list[tuple[int, int]] = []
    slot = 0

    def total(start: int, stop: int) -> int:
        nonlocal slot
        if slot < len(subtrees) and tuple(subtrees[slot]) == (start, stop):
            slot += 1
            return slot - 1
        if slot == len(subtrees) or subtrees[slot][0] != start or not start + 1 < stop:
            found = f"is {tuple(subtrees[slot])}" if slot < len(subtrees) else "is missing"
            raise ValueError(
                f"subtree {slot} {found}, but a node of the tree over {leaves} leaves must come "
                f"next that starts at leaf {start} and stops at or before leaf {stop}; give the "
                f"maximal subtrees of every range, in order and without gaps or overlaps"
            )
        split = start + half_of(stop - start)
        left, right = total(start, split), total(split, stop)
        order.append((left, right))
        return left

    if leaves < 1:
        raise ValueError(f"a tree over {leaves} leaves has no sum; give at least one leaf")
    total(0, leaves)
    if slot < len(subtrees):
        raise ValueError(
            f"subtree {slot} is {tuple(subtrees[slot])}, but the {slot} before it already cover "
            f"all {leaves} leaves; give each leaf once"
        )
    return order


class Accumulator(Generic[T]):
    """Sums a range of leaves, fed one at a time and in order, into its maximal subtrees.

    Two siblings are added as soon as both are there. With maximal subtrees of `n_0, n_1, ...`
    leaves, at most `max(j + floor(log2(n_j)) + 1 for j, n_j)` values are held at once, the one
    just pushed included: `floor(log2(n)) + 1` for a range that is one node, never more than
    `floor(log2(n)) + number of maximal subtrees` for any range of `n` leaves.

    Args:
        start: First leaf of the range.
        stop: One past its last leaf.
        leaves: Number of leaves of the whole tree.
        add: Returns the sum of its left and right operand. It may work in place on the left one
            and return it; neither operand is used again.

    Raises:
        ValueError: The range is empty or not inside the tree.
    """

    def __init__(self, start: int, stop: int, leaves: int, add: Callable[[T, T], T]) -> None:
        _check_range(start, stop, leaves)
        self._range = (start, stop)
        self._leaves = leaves
        self._add = add
        self._next = start
        self._nodes: list[tuple[int, T]] = []  # first leaf and sum; each ends where the next begins

    def push(self, value: T, leaves: int = 1, add: Callable[[T, T], T] | None = None) -> None:
        """Take the value of the next leaf of the range, or the sum of its next node.

        Args:
            value: The value; it may be changed in place.
            leaves: How many leaves it sums; more than one must be a node of the tree. Default 1.
            add: Adds it to its siblings, where that is to be done in another way.

        Raises:
            ValueError: The range has fewer leaves left.
        """
        start, stop = self._range
        if self._next + leaves > stop:
            raise ValueError(
                f"leaf {self._next + leaves - 1} was pushed, but the range is [{start}, {stop}) "
                f"and is complete; make a new Accumulator for the next sum"
            )
        middle = self._next
        self._next += leaves
        # A left sibling is a full block, so its length alone says where the parent ends.
        while self._nodes:
            first, left = self._nodes[-1]
            length = 2 * (middle - first)
            if first % length or self._next != min(first + length, self._leaves):
                break
            self._nodes.pop()
            value = (add or self._add)(left, value)
            middle = first
        self._nodes.append((middle, value))

    @property
    def end(self) -> int:
        """One past the last leaf pushed."""
        return self._next

    @property
    def nodes(self) -> list[tuple[int, int, T]]:
        """What has been summed so far: nodes of the tree `(start, stop, sum)`, left to right."""
        ends = [first for first, _ in self._nodes[1:]] + [self._next]
        return [(first, end, v) for (first, v), end in zip(self._nodes, ends, strict=False)]

    @property
    def partials(self) -> list[T]:
        """The sums of the range's maximal subtrees, left to right.

        Raises:
            ValueError: Some leaves of the range have not been pushed yet.
        """
        start, stop = self._range
        if self._next < stop:
            raise ValueError(
                f"{self._next - start} of the {stop - start} leaves in [{start}, {stop}) have been "
                f"pushed; push the others first"
            )
        return [value for _, value in self._nodes]


def fold(leaves: Sequence[T], add: Callable[[T, T], T]) -> T:
    """Sum all leaves in tree order, the plain way: what every other way must equal.

    Args:
        leaves: The values, at least one.
        add: As for `Accumulator`; if it works in place, it does so on the given leaves.

    Raises:
        ValueError: There are no leaves.
    """
    if not leaves:
        raise ValueError("a sum of no leaves has no value here; give at least one leaf")
    if len(leaves) == 1:
        return leaves[0]
    split = half_of(len(leaves))
    return add(fold(leaves[:split], add), fold(leaves[split:], add))


def half_of(length: int) -> int:
    """Return the largest power of two below `length`, which is at least 2."""
    return 1 << (length - 1).bit_length() - 1


def _check_range(start: int, stop: int, leaves: int) -> None:
    if not 0 <= start < stop <= leaves:
        raise ValueError(
            f"the range [{start}, {stop}) is not a range of a tree over {leaves} leaves; "
            f"it must satisfy 0 <= start < stop <= {leaves}"
        )
