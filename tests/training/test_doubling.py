"""What is not cut goes to all workers: sums in the tree's order, and every worker's own values."""

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.traffic import ranges_of
from raytrain_plus.training import bucket
from raytrain_plus.training.bucket import Group
from raytrain_plus.training.doubling import by_doubling
from raytrain_plus.training.endpoint import Endpoint
from raytrain_plus.training.gather import gather_bytes
from raytrain_plus.training.halving import halving
from raytrain_plus.training.reduction import Reduction
from raytrain_plus.training.step_header import HEADER_WIDTH
from raytrain_plus.training.transport import Transport
from raytrain_plus.training.tree import fold
from tests.training.test_halving import groups, partials_of
from tests.training.wires import Network

CPU = torch.device("cpu")


def group_of(ranges, *, halves):
    """Return a group that sums by halves, or directly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bucket, "by_halves", lambda *_: halves)
        return Group.of(ranges, CPU, [1 << 20])


def exchanged(parts, partials):
    """Do what all workers' rounds say; return each worker's total, and whose values it has."""
    tables, known = [], []
    for worker, (part, mine) in enumerate(zip(parts, partials, strict=True)):
        table = np.full((part.rows, len(mine[0])), np.nan)
        table[slice(*part.own)] = mine
        tables.append(table)
        known.append({worker})
    for rounds in zip(*(part.rounds for part in parts), strict=True):
        on_the_way = defaultdict(list)
        for worker, one in enumerate(rounds):
            for parcel in one.sends:
                assert known[worker].issuperset(range(*parcel.workers))
                content = tables[worker][slice(*parcel.rows)].copy(), parcel.workers
                on_the_way[worker, parcel.peer].append(content)
        for worker, one in enumerate(rounds):
            for parcel in one.receives:
                rows, workers = on_the_way[parcel.peer, worker].pop(0)
                assert workers == parcel.workers
                tables[worker][slice(*parcel.rows)] = rows
                known[worker].update(range(*workers))
            for into, left, right in one.sums:
                tables[worker][into] = tables[worker][left] + tables[worker][right]
        assert not any(on_the_way.values())
    return [table[part.total] for table, part in zip(tables, parts, strict=True)], known


@settings(max_examples=200, deadline=None)
@given(groups(), st.integers(1, 5), st.integers(0, 2**32 - 1), st.booleans())
def test_every_worker_gets_the_bits_of_the_tree_and_all_values(ranges, width, seed, halves):
    draws = np.random.default_rng(seed)
    leaves = ranges[-1].stop
    vectors = draws.standard_normal((leaves, width)) * 10.0 ** draws.integers(-9, 9, (leaves, 1))
    expected = fold(list(vectors.copy()), np.add)
    group = group_of(ranges, halves=halves)
    parts = [group.part(worker) for worker in range(len(ranges))]
    doublings = [part.doubling for part in parts]
    totals, known = exchanged(doublings, partials_of(ranges, vectors))
    assert all(total.tobytes() == expected.tobytes() for total in totals)
    assert known == [set(range(len(ranges)))] * len(ranges)
    for worker, part in enumerate(parts):  # partners know each other
        assert worker not in part.partners
        assert all(worker in parts[partner].partners for partner in part.partners)


def test_another_order_of_additions_has_other_bits():
    """The control."""
    vectors = np.random.default_rng(1).standard_normal((24, 4))
    assert sum(vectors).tobytes() != fold(list(vectors.copy()), np.add).tobytes()


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 3, 7, 12])
def test_bytes_of_any_length_reach_all_workers_in_order(workers, halves):
    group = group_of(ranges_of(workers, 3 * workers + 1), halves=halves)
    for payloads in ([bytes([i]) * (i * i % 7) for i in range(workers)], [b""] * workers):
        gathered = Network(workers).run(
            lambda wire, payloads=payloads: gather_bytes(
                wire, group.part(wire.index).doubling.rounds, payloads[wire.index]
            )
        )
        assert gathered == [payloads] * workers


@pytest.mark.parametrize(
    ("workers", "logical_ranks", "messages", "partners"),
    [(10, 80, 5, 5), (100, 800, 12, 14), (1_000, 8_000, 14, 17), (1_000, 1_000, 14, 17)],
)
def test_a_worker_has_few_messages_and_partners(workers, logical_ranks, messages, partners):
    group = Group.of(ranges_of(workers, logical_ranks), CPU, [4 << 20] * 24)
    parts = [group.part(worker) for worker in range(0, workers, max(1, workers // 50))]
    assert all(part.halving is not None for part in parts)
    sent = [sum(len(one.sends) for one in part.doubling.rounds) for part in parts]
    assert max(sent) <= messages
    # The step header needs no connection that the buckets do not need.
    assert max(len(part.partners) for part in parts) <= partners
    for part in parts:
        moves = [*part.halving.reduce, *part.halving.gather]
        of_buckets = {move.peer for one in moves for move in (*one.sends, *one.receives)}
        assert part.doubling.partners <= of_buckets


@pytest.mark.slow
def test_a_worker_of_ten_thousand_has_few_messages_and_partners():
    workers = 10_000
    planned = halving(ranges_of(workers, 8 * workers), bucket.UNITS)
    healing = 3  # the member that sends a state, and the two that it is sent on to
    assert max(map(len, planned.partners())) + healing <= 35
    assert max(planned.sent()[0]) <= 50
    some = by_doubling(planned, workers // 2)
    assert sum(len(one.sends) for one in some.rounds) <= 20


@pytest.mark.parametrize("halves", [False, True])
def test_the_memory_of_a_generation_is_made_once(halves):
    workers = 4
    ranges = ranges_of(workers, 2 * workers)
    group = group_of(ranges, halves=halves)
    endpoints = [Endpoint("127.0.0.1", "secret") for _ in range(workers)]
    addresses = [endpoint.address for endpoint in endpoints]
    kept = []

    def train(index):
        transport = Transport(index, workers, CPU)
        transport.meet(endpoints[index], addresses, 1, group.part(index))
        like = [torch.ones(1000), torch.ones(3)]
        reduction = Reduction(like, [], ranges, transport, group=group)
        rows = np.ones((2, HEADER_WIDTH))
        memory = []
        for step in range(5):
            reduced = reduction.run([like], rows, b"")
            memory.append(reduced.gradients[0].data_ptr())
            assert reduced.gradients[0].tolist() == [0.5] * 1000
            if step == 3 and index == 0:
                kept.append(reduced.gradients[0])  # as an optimizer may do
            del reduced
        transport.all_gather_bytes(b"over")
        return memory

    with ThreadPoolExecutor(workers) as threads:
        found = list(threads.map(train, range(workers)))
    for endpoint in endpoints:
        endpoint.close()
    assert all(len(set(memory[:4])) == 1 for memory in found)
    assert found[0][4] != found[0][3]  # the control: what is kept is left alone
    assert all(memory[4] == memory[3] for memory in found[1:])


def test_a_member_of_a_group_is_connected_to_its_partners_only():
    workers, halves = 24, {}
    ranges = ranges_of(workers, 2 * workers + 3)
    endpoints = [Endpoint("127.0.0.1", "secret") for _ in range(workers)]
    addresses = [endpoint.address for endpoint in endpoints]
    names = [address[2] for address in addresses]
    for generation, by_halves in enumerate((True, False), 1):
        group = group_of(ranges, halves=by_halves)

        def meet(index, generation=generation, group=group):
            transport = Transport(index, workers, CPU)
            others = {3: [20], 20: [3]}.get(index, [])  # one sends the other its state
            transport.meet(endpoints[index], addresses, generation, group.part(index), others)
            gathered = transport.all_gather_bytes(b"%d" % index)
            transport.close()
            return gathered, set(endpoints[index]._open)

        with ThreadPoolExecutor(workers) as threads:
            found = list(threads.map(meet, range(workers)))
        assert all(gathered == [b"%d" % i for i in range(workers)] for gathered, _ in found)
        halves[by_halves] = [connected for _, connected in found]
        for index, (_, connected) in enumerate(found):
            others = {3: {20}, 20: {3}}.get(index, set()) if by_halves else set()
            partners = group.part(index).partners | others
            assert connected == {names[partner] for partner in partners}
    for endpoint in endpoints:
        endpoint.close()
    assert max(map(len, halves[True])) <= 13
    assert all(len(connected) == workers - 1 for connected in halves[False])  # the control
