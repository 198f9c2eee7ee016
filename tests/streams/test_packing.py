"""Packing keeps each token once, in its document and in its order."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain_plus.streams.packing import PADDING, Documents, Packer, WholePacker

lengths = st.lists(st.integers(0, 9), min_size=1, max_size=30)
cuts = st.lists(st.integers(0, 30), max_size=3)


def documents_of(lengths):
    """Return documents whose tokens are all different."""
    ends = np.cumsum([0, *lengths])
    return [np.arange(a, b, dtype=np.int32) for a, b in itertools.pairwise(ends)]


def packed(packer, documents, cuts=()):
    """Add documents in pieces, and return all sequences."""
    found = []
    bounds = sorted({0, *(cut for cut in cuts if cut < len(documents)), len(documents)})
    for start, end in itertools.pairwise(bounds):
        some = documents[start:end]
        tokens = np.concatenate([np.empty(0, np.int32), *some])
        found += packer.add(Documents(tokens, np.array([len(one) for one in some], np.int64)))
    found += packer.finish()
    empty = np.empty((0, 4), np.int64)
    return tuple(
        np.concatenate([getattr(one, name) for one in found]) if found else empty
        for name in ("tokens", "documents", "offsets")
    )


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(2, 7), st.integers(0, 3), cuts)
def test_divided_documents_keep_every_token_in_order(lengths, length, overlap, cuts):
    overlap = min(overlap, length - 1)
    documents = documents_of(lengths)
    packer = Packer(length, overlap, pad=-7)
    tokens, numbers, offsets = packed(packer, documents, cuts)
    seen = []
    for row, (own, numbered) in enumerate(zip(tokens, numbers, strict=True)):
        is_real = numbered != PADDING
        assert (own[~is_real] == -7).all()
        assert is_real.any()
        if row:  # it repeats the end of the row before
            assert own[:overlap].tolist() == tokens[row - 1][length - overlap :].tolist()
        seen += own[is_real][overlap if row else 0 :].tolist()
        first = numbered[0]
        assert documents[first][offsets[row]] == own[0]
        for token, document in zip(own[is_real], numbered[is_real], strict=True):
            assert token in documents[document]
    assert seen == np.concatenate([np.empty(0, np.int32), *documents]).tolist()
    assert packer.padding == (numbers == PADDING).sum()
    assert (numbers[:-1] != PADDING).all()


@settings(max_examples=60, deadline=None)
@given(lengths, cuts)
def test_whole_documents_stand_in_one_sequence_each(lengths, cuts):
    documents = documents_of(lengths)
    packer = WholePacker(9, pad=-7)
    tokens, numbers, _ = packed(packer, documents, cuts)
    found = {}
    for own, numbered in zip(tokens, numbers, strict=True):
        assert (own[numbered == PADDING] == -7).all()
        for document in set(numbered.tolist()) - {PADDING}:
            assert document not in found
            found[document] = own[numbered == document].tolist()
    assert found == {n: one.tolist() for n, one in enumerate(documents) if len(one)}
    assert packer.padding == (numbers == PADDING).sum()
    assert len(tokens) <= max(1, 2 * sum(lengths) / 9 + 1)  # any two of them are more than full


@given(lengths, st.integers(2, 7), cuts)
@settings(max_examples=30, deadline=None)
def test_the_pieces_in_which_documents_come_have_no_influence(lengths, length, cuts):
    documents = documents_of(lengths)
    for make in (lambda: Packer(length, 1), lambda: WholePacker(9)):
        one, other = packed(make(), documents), packed(make(), documents, cuts)
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_does_not_fill_a_sequence_is_counted():
    packer = Packer(4, overlap=1)
    assert packed(packer, documents_of([4]))[0].tolist() == [[0, 1, 2, 3]]
    assert packer.left == 0  # the token that would be repeated stands in the first row
    assert list(packer.add(Documents(np.array([9, 9]), np.array([2])))) == []
    assert packer.left == 2


@pytest.mark.parametrize("number", [2**31 - 1, 2**31 + 5])
def test_many_documents_keep_their_numbers(number):
    packer = Packer(2)
    packer._next_document = number
    (found,) = packer.add(Documents(np.array([1, 2]), np.array([2])))
    assert found.documents.tolist() == [[number, number]]
