"""Turns texts into tokens, in this process or in several others, in the order of the texts.

Which process tokenizes which texts has no influence on the result. This module imports little,
since each process that tokenizes imports it.
"""

import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from typing import Any, TypeAlias

import numpy as np

from raytrain_plus.streams.packing import Documents, Ints

_AHEAD = 2  # chunks of texts for each process that wait


@dataclass(frozen=True)
class Encoding:
    """How texts become tokens.

    Attributes:
        tokenizer: the content of a `tokenizer.json`.
        before, after: tokens that are added to each text.
        special_as_text: a special token that is written in a text, such as `</s>`, is tokenized as
            text and does not become the special token.
    """

    tokenizer: str
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    special_as_text: bool = False


class Encoder:
    """Turns texts into tokens, in this process and one thread.

    Args:
        encoding: how.
    """

    def __init__(self, encoding: Encoding) -> None:
        # Before the import: the threads of the library would compete with the other processes.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        from tokenizers import Tokenizer  # noqa: PLC0415 - an extra

        self._tokenizer: Any = Tokenizer.from_str(encoding.tokenizer)
        # Both may be set in the file. They would cut texts, or add tokens.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = encoding.special_as_text
        self._before = np.array(encoding.before, np.int32)
        self._after = np.array(encoding.after, np.int32)

    def encode(self, texts: list[str]) -> Documents:
        """Return the tokens of some texts."""
        found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ids = [one.ids for one in found]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        tokens = np.fromiter(itertools.chain.from_iterable(ids), np.int32, int(lengths.sum()))
        return self._framed(tokens, lengths)

    def _framed(self, tokens: Ints, lengths: Ints) -> Documents:
        """Add the tokens that stand before and after each text."""
        before, after = len(self._before), len(self._after)
        if not before + after:
            return Documents(tokens, lengths)
        framed = lengths + before + after
        starts = np.cumsum(framed) - framed
        out = np.empty(int(framed.sum()), np.int32)
        own = np.ones(len(out), bool)
        for added, first in ((self._before, starts), (self._after, starts + before + lengths)):
            places = first[:, None] + np.arange(len(added))
            out[places], own[places] = added, False
        out[own] = tokens
        return Documents(out, framed)


Encode: TypeAlias = Callable[[Iterable[list[str]]], Iterator[Documents]]
"""Yields the tokens of each chunk of texts, in order; a few chunks are read ahead."""


@contextlib.contextmanager
def ready(encoding: Encoding, processes: int) -> Iterator[Encode]:
    """Return a function that tokenizes, in processes that end with the block.

    Args:
        encoding: how texts become tokens.
        processes: how many processes tokenize; with 1 it is this process.
    """
    if processes == 1:
        encoder = Encoder(encoding)
        yield lambda chunks: map(encoder.encode, chunks)
        return
    context = multiprocessing.get_context("spawn")
    ended = context.Event()
    pool = ProcessPoolExecutor(processes, context, initializer=_start, initargs=(encoding, ended))
    try:
        for _ in range(processes):  # a process starts with its first task
            pool.submit(_encode, [])
        yield functools.partial(_in_order, pool, processes * _AHEAD)
    finally:
        ended.set()  # what a process has been sent already cannot be cancelled
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, ahead: int, chunks: Iterable[list[str]]
) -> Iterator[Documents]:
    waiting: deque[Future[Documents]] = deque()
    for chunk in chunks:
        waiting.append(pool.submit(_encode, chunk))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


_own: list[tuple[Encoder, Event]] = []


def _start(encoding: Encoding, ended: Event) -> None:
    """Prepare a process that tokenizes."""
    # Ctrl-C goes to the whole group of processes. The one that started this one ends it in order.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _own.append((Encoder(encoding), ended))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        with contextlib.suppress(OSError):
            parent.join()
        os._exit(1)


def _encode(texts: list[str]) -> Documents:
    encoder, ended = _own[0]
    return encoder.encode([] if ended.is_set() else texts)
