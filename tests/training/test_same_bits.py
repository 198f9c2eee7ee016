"""Tensors are compared bit by bit, of whatever kind they are."""

import pytest
import torch

from raytrain_plus.training.same_bits import same_bits

DENSE = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
KINDS = {
    "dense": lambda t: t,
    "transposed": lambda t: t.t(),
    "half": lambda t: t.bfloat16(),
    "whole": lambda t: t.long(),
    "truth": lambda t: t.bool(),
    "complex": lambda t: t.to(torch.complex64),
    "conjugate": lambda t: torch.complex(t, t + 1).conj(),
    "negative": lambda t: torch.complex(t, t + 1).conj().imag,
    "coo": lambda t: t.to_sparse(),
    "csr": lambda t: t.to_sparse_csr(),
    "csc": lambda t: t.to_sparse_csc(),
    "nested": lambda t: torch.nested.nested_tensor([t[0], t[1, :1]], layout=torch.jagged),
    "scalar": lambda t: t.sum(),
    "empty": lambda t: t[:0],
}


@pytest.mark.filterwarnings("ignore:Sparse CS")
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_has_the_same_bits_and_another_tensor_has_not(kind):
    make = KINDS[kind]
    assert same_bits(make(DENSE), make(DENSE.clone()))
    if kind != "empty":
        other = DENSE.clone()
        other[1, 0] = 0.0 if kind == "truth" else 3.0
        assert not same_bits(make(DENSE), make(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2), torch.zeros(1, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(2), torch.tensor([0.0, -0.0])),
        (DENSE, DENSE.to_sparse()),
        (DENSE.to_sparse(), torch.tensor([[0.0, 1.0], [0.0, 0.0]]).to_sparse()),
    ],
)
def test_what_differs_in_form_or_in_the_sign_of_zero(one, other):
    assert not same_bits(one, other)


def test_not_a_number_equals_itself():
    assert same_bits(torch.tensor(float("nan")), torch.tensor(float("nan")))
