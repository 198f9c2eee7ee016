"""In what a newcomer differs from its group, and what may be the cause."""

from raytrain_plus.elastic.policy.admission import difference

GROUP = {"torch": "2", "threads": "1", "probe gradient": "a" * 64}


def test_an_equal_newcomer_differs_in_nothing():
    assert difference(GROUP, dict(GROUP)) == ""


def test_a_difference_is_named_with_both_values():
    newcomer = {**GROUP, "torch": "3", "probe gradient": "b" * 64}
    told = difference(GROUP, newcomer, "before it was")
    assert "torch is 3, before it was 2; probe gradient is bbbbbbbbbbbb" in told
    assert "machine" not in told
    assert difference(GROUP, {"torch": "2"}).startswith("threads is unknown, the group's is 1")


def test_other_bits_with_the_same_versions_come_from_the_machine():
    told = difference(GROUP, {**GROUP, "probe gradient": "b" * 64})
    assert "all versions are equal, so look at the machine" in told
