"""Embeddings of n-grams: the lookup by hand, no look ahead, no effect at the start."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.algorithms import AspectError, AspectWarning
from raytrain_plus.algorithms.n_gram_embeddings import (
    NGramEmbeddings,
    apply_n_gram_embeddings,
    n_gram_buckets,
)
from tests.algorithms.tiny import CONTEXT, WORDS, TinyImages, TinyTokens, build, trained


def tokens():
    return torch.randint(0, WORDS, (3, CONTEXT), generator=torch.Generator().manual_seed(1))


def drawn(model):
    """Fill the tables with random values."""
    for table in model.words.n_grams:
        torch.nn.init.normal_(table.weight, generator=torch.Generator().manual_seed(2))
    return model


def signed(number):
    """Return a number as a signed 64-bit integer."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def bucket_by_hand(gram, buckets):
    """Return the bucket of one n-gram, computed with Python's integers."""
    polynomial = signed(
        sum((token + 1) * 6364136223846793005**back for back, token in enumerate(reversed(gram)))
    )
    mixed = signed((polynomial ^ (polynomial >> 31)) * -0x61C8864680B583EB)
    return (mixed >> 31) % buckets


ROWS = st.lists(st.integers(0, 60_000), min_size=1, max_size=9)


@given(ROWS, st.integers(1, 5), st.integers(2, 10_000))
def test_a_bucket_depends_on_the_last_n_tokens_only(row, n, buckets):
    found = n_gram_buckets(torch.tensor([row]), n, buckets)[0].tolist()
    grams = [row[max(0, end - n) : end] for end in range(1, len(row) + 1)]
    assert found == [bucket_by_hand(gram, buckets) for gram in grams]


def test_n_grams_that_differ_in_order_length_or_a_zero_fall_into_different_buckets():
    pairs = torch.cartesian_prod(torch.arange(256), torch.arange(256))
    found = n_gram_buckets(pairs, 2, 1 << 32)
    assert len(found[:, 1].unique()) == 256 * 256
    assert len(found.unique()) == 256 * 256 + 256  # the buckets of the first token alone, too


@pytest.mark.parametrize("n", [2, 3, 4])
def test_buckets_are_filled_evenly(n):
    """As evenly as by chance: for 65,536 n-grams in 256 buckets the standard deviation is 16."""
    grams = torch.cartesian_prod(*[torch.arange(round(65536 ** (1 / n)))] * n)
    counts = torch.bincount(n_gram_buckets(grams, n, 256)[:, -1], minlength=256).double()
    assert counts.std() < 1.5 * counts.mean().sqrt()


def test_it_adds_one_row_for_each_length():
    model = TinyTokens().model()
    plain = model.words(tokens())
    apply_n_gram_embeddings(model, longest=4, buckets=32)
    tables = drawn(model).words.n_grams
    assert [tuple(table.weight.shape) for table in tables] == [(32, 8)] * 3
    expected = plain + sum(
        table.weight[n_gram_buckets(tokens(), n, 32)] for n, table in enumerate(tables, 2)
    )
    torch.testing.assert_close(model.words(tokens()), expected)


def test_it_starts_as_the_plain_model_and_then_changes():
    model = TinyTokens().model()
    plain = model(tokens())
    surgery = apply_n_gram_embeddings(model)
    assert torch.equal(model(tokens()), plain)
    assert model.head.weight is model.words.weight  # still tied
    drawn(model)
    assert not torch.allclose(model(tokens()), plain, atol=1e-3)
    surgery.undo()
    assert torch.equal(model(tokens()), plain)


def test_adding_it_draws_no_random_numbers():
    torch.manual_seed(4)
    apply_n_gram_embeddings(TinyTokens().model())
    after = torch.rand(3)
    torch.manual_seed(4)
    TinyTokens().model()
    assert torch.equal(after, torch.rand(3))


@pytest.mark.parametrize("length", [1, 2, CONTEXT])
def test_no_token_sees_later_tokens_and_short_sequences_are_allowed(length):
    model = TinyTokens().model()
    apply_n_gram_embeddings(model, longest=4)
    drawn(model)
    whole = model.words(tokens())
    torch.testing.assert_close(model.words(tokens()[:, :length]), whole[:, :length])
    other = tokens()
    other[:, -1] = (other[:, -1] + 1) % WORDS
    assert torch.equal(model(tokens())[:, :-1], model(other)[:, :-1])
    assert not torch.equal(model(tokens())[:, -1], model(other)[:, -1])


def test_a_token_sees_earlier_tokens():
    """The negative control: plain embeddings do not."""
    other = tokens()
    other[:, 0] = (other[:, 0] + 1) % WORDS
    model = TinyTokens().model()
    assert torch.equal(model.words(tokens())[:, 1], model.words(other)[:, 1])
    apply_n_gram_embeddings(model, longest=3)
    drawn(model)
    assert not torch.equal(model.words(tokens())[:, 1:3], model.words(other)[:, 1:3])
    assert torch.equal(model.words(tokens())[:, 3:], model.words(other)[:, 3:])


def test_the_optimizer_trains_the_tables_in_the_group_of_the_words():
    model = TinyTokens().model()
    others = [p for p in model.parameters() if p is not model.words.weight]
    optimizer = torch.optim.SGD([{"params": others}, {"params": [model.words.weight]}], lr=0.1)
    apply_n_gram_embeddings(model, optimizer=optimizer)
    trained_there = {id(p) for p in optimizer.param_groups[1]["params"]}
    assert {id(table.weight) for table in model.words.n_grams} <= trained_there
    assert all(table.weight.requires_grad for table in model.words.n_grams)
    with pytest.raises(AspectError, match="does not train"):
        apply_n_gram_embeddings(
            TinyTokens().model(), optimizer=torch.optim.SGD([model.norm.weight], lr=0.1)
        )


def test_applying_it_twice_has_the_effect_of_once_and_undoing_removes_it():
    model = TinyTokens().model()
    names = list(model.state_dict())
    surgery = apply_n_gram_embeddings(model)
    assert list(surgery.changed) == ["words"]
    assert not apply_n_gram_embeddings(model).changed
    surgery.undo()
    assert list(model.state_dict()) == names
    assert type(model.words) is torch.nn.Embedding


def test_the_tables_have_the_dtype_of_the_embedding():
    model = TinyTokens().model().to(torch.bfloat16)
    apply_n_gram_embeddings(model)
    assert model.words.n_grams[0].weight.dtype == torch.bfloat16
    assert model(tokens()).dtype == torch.bfloat16


def test_the_aspect_trains_the_tables():
    aspect = NGramEmbeddings(longest=2, buckets=8)
    (begun,) = build(TinyTokens(), [aspect])[0].replica.model.words.n_grams
    (ended,) = trained(TinyTokens(), [aspect], steps=3)[0].replica.model.words.n_grams
    assert begun.weight.shape[0] == 8
    assert not begun.weight.any()
    assert ended.weight.any()


def test_a_model_without_a_known_embedding_gets_a_warning():
    with pytest.warns(AspectWarning, match="GPT"):
        build(TinyImages(), [NGramEmbeddings()])


@pytest.mark.parametrize("settings", [{"longest": 1}, {"longest": 9}, {"buckets": 1}])
def test_settings_out_of_bounds_are_errors(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        NGramEmbeddings(**settings)
