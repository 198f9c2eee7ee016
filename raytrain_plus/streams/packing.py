"""Packs documents of tokens into sequences of one length; no token is lost, moved or repeated.

There are two ways. `Packer` writes the documents one after the other and cuts the result into
sequences, so a document may go on in the next sequence. `WholePacker` never divides a document: it
looks for a sequence with room for all of it, and fills the rest of each sequence with padding.

Both name, for each token, the document that it belongs to. So attention or a loss can stop where a
document ends.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

PADDING = -1
"""The document of a padding token."""

Ints: TypeAlias = npt.NDArray[Any]

_OPEN = 64  # sequences that `WholePacker` fills at a time


@dataclass(frozen=True)
class Documents:
    """Consecutive documents as tokens.

    Attributes:
        tokens: of all documents, one after the other, of shape (tokens,).
        lengths: tokens of each document, of shape (documents,).
    """

    tokens: Ints
    lengths: Ints


@dataclass(frozen=True)
class Sequences:
    """Sequences of one length.

    Attributes:
        tokens: of shape (sequences, length).
        documents: the number of each token's document, from 0; `PADDING` for padding. Same shape.
        offsets: for each sequence, how many tokens of its first document stand in earlier
            sequences, of shape (sequences,).
    """

    tokens: Ints
    documents: Ints
    offsets: Ints


class Packer:
    """Writes documents one after the other, and cuts them into sequences.

    Args:
        length: tokens of a sequence.
        overlap: how many tokens a sequence repeats from the end of the one before.
        pad: the token that fills the last sequence.

    Attributes:
        padding: how many padding tokens were added.
    """

    def __init__(self, length: int, overlap: int = 0, pad: int = 0) -> None:
        self._length, self._overlap, self._pad = length, overlap, pad
        self._tokens = np.empty(0, np.int32)
        self._documents, self._places = np.empty(0, np.int64), np.empty(0, np.int64)
        self._next_document = 0
        self._is_first = True
        self.padding = 0

    def add(self, documents: Documents) -> Iterator[Sequences]:
        """Add documents after those before, and yield the sequences that they complete."""
        count, total = len(documents.lengths), len(documents.tokens)
        starts = np.cumsum(documents.lengths) - documents.lengths
        numbers = np.arange(self._next_document, self._next_document + count)
        self._next_document += count
        self._tokens = np.concatenate([self._tokens, documents.tokens])
        self._documents = np.concatenate([self._documents, np.repeat(numbers, documents.lengths)])
        places = np.arange(total) - np.repeat(starts, documents.lengths)
        self._places = np.concatenate([self._places, places])
        whole = (len(self._tokens) - self._overlap) // (self._length - self._overlap)
        if whole > 0:
            yield self._cut(whole)

    def _cut(self, count: int) -> Sequences:
        stride = self._length - self._overlap
        rows = np.arange(count)[:, None] * stride + np.arange(self._length)
        found = Sequences(self._tokens[rows], self._documents[rows], self._places[rows[:, 0]])
        self._tokens = self._tokens[count * stride :]
        self._documents = self._documents[count * stride :]
        self._places = self._places[count * stride :]
        self._is_first = False
        return found

    @property
    def left(self) -> int:
        """How many tokens stand in no sequence yet."""
        return max(0, len(self._tokens) - (0 if self._is_first else self._overlap))

    def finish(self) -> Iterator[Sequences]:
        """Yield the last sequence, filled with padding; nothing if no token is left."""
        if not self.left:
            return
        self.padding = self._length - len(self._tokens)
        self._tokens = np.pad(self._tokens, (0, self.padding), constant_values=self._pad)
        self._documents = np.pad(self._documents, (0, self.padding), constant_values=PADDING)
        self._places = np.pad(self._places, (0, self.padding))
        yield self._cut(1)


class WholePacker:
    """Puts each document as a whole into a sequence that has room for it.

    It fills a bounded number of sequences at a time, and takes the one in which the least room is
    left over. So it needs little memory, and the result depends on nothing but the documents.

    Args:
        length: tokens of a sequence; no document may be longer.
        pad: the token that fills a sequence.

    Attributes:
        padding: how many padding tokens were added.
    """

    def __init__(self, length: int, pad: int = 0) -> None:
        self._length, self._pad = length, pad
        self._open: list[_Filling] = []
        self._next_document = 0
        self.padding = 0

    def add(self, documents: Documents) -> Iterator[Sequences]:
        """Add documents, and yield the sequences that are full or closed."""
        ends = np.cumsum(documents.lengths).tolist()
        done = []
        for number, end in enumerate(ends):
            tokens = documents.tokens[end - int(documents.lengths[number]) : end]
            done += self._place(tokens, self._next_document + number)
        self._next_document += len(ends)
        if done:
            yield self._closed(done)

    def _place(self, tokens: Ints, number: int) -> "list[_Filling]":
        fits = [one for one in self._open if one.used + len(tokens) <= self._length]
        done = []
        if fits:
            chosen = max(fits, key=lambda one: one.used)  # the first of equals
        else:
            chosen = _Filling()
            self._open.append(chosen)
        chosen.put(tokens, number)
        if len(self._open) > _OPEN:
            fullest = max(self._open, key=lambda one: one.used)
            self._open.remove(fullest)
            done.append(fullest)
        if chosen.used == self._length and chosen in self._open:
            self._open.remove(chosen)
            done.append(chosen)
        return done

    def _closed(self, sequences: "list[_Filling]") -> Sequences:
        shape = (len(sequences), self._length)
        tokens = np.full(shape, self._pad, np.int32)
        documents = np.full(shape, PADDING, np.int64)
        for row, one in enumerate(sequences):
            tokens[row, : one.used] = np.concatenate(one.tokens)
            documents[row, : one.used] = np.repeat(one.numbers, [len(t) for t in one.tokens])
            self.padding += self._length - one.used
        return Sequences(tokens, documents, np.zeros(len(sequences), np.int64))

    @property
    def left(self) -> int:
        """How many tokens stand in no sequence yet."""
        return sum(one.used for one in self._open)

    def finish(self) -> Iterator[Sequences]:
        """Yield the sequences that are not full, filled with padding."""
        last = [one for one in self._open if one.used]
        self._open = []
        if last:
            yield self._closed(last)


@dataclass(eq=False)
class _Filling:
    """A sequence that is filled with whole documents.

    Attributes:
        used: its tokens.
        tokens: those of each document.
        numbers: of the documents.
    """

    used: int = 0
    tokens: list[Ints] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    def put(self, tokens: Ints, number: int) -> None:
        """Add a document."""
        self.used += len(tokens)
        self.tokens.append(tokens)
        self.numbers.append(number)
