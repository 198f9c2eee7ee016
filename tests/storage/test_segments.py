"""A file of segments holds each piece once, in order, whatever happens to requests and writers."""

import contextlib
import random
import threading
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain_plus.storage import segments
from raytrain_plus.storage.errors import ExistsError, StoreError
from raytrain_plus.storage.segments import (
    SegmentedFile,
    SegmentError,
    SegmentWriter,
    Span,
    cover,
    due_merge,
    name_of,
    packed,
    span_of,
)
from raytrain_plus.storage.store import Store


class FencedError(Exception):
    pass


class Turns:
    """Actors in threads of their own, of which one runs at a time, until its next request."""

    def __init__(self, chosen):
        self._chosen = chosen
        self._go, self._waits = {}, threading.Semaphore(0)
        self.errors = []

    def pause(self):
        name = threading.current_thread().name
        if name in self._go:
            self._waits.release()
            self._go[name].acquire()

    def run(self, actors):
        living = {}
        for name, actor in actors.items():
            self._go[name] = threading.Semaphore(0)
            living[name] = threading.Thread(target=self._act, args=(actor,), name=name, daemon=True)
        for thread in living.values():
            thread.start()
            self._waits.acquire()
        while living:
            name = self._chosen(sorted(living))
            self._go[name].release()
            self._waits.acquire()
            living = {n: t for n, t in living.items() if n not in self._ended}
        if self.errors:
            raise self.errors[0]

    _ended: set

    def _act(self, actor):
        self._ended = getattr(self, "_ended", set())
        name = threading.current_thread().name
        try:
            self.pause()
            actor()
        except Exception as error:  # noqa: BLE001 - the test raises it
            self.errors.append(error)
        self._ended.add(name)
        self._waits.release()


@dataclass
class FaultyStore:
    """Objects in memory. A request may be lost, executed without an answer, twice, or later."""

    turns: Turns
    fault: object
    objects: dict = field(default_factory=dict)
    late: list = field(default_factory=list)

    def _request(self, execute):
        self.turns.pause()
        fault = self.fault()
        if self.late and self.fault() == "later":
            self.late.pop(0)()
        if fault == "lost":
            raise StoreError("lost")
        if fault == "later":
            self.late.append(lambda: _quietly(execute))
            raise StoreError("no answer")
        if fault == "twice":
            _quietly(execute)
        answer = execute()
        if fault == "no answer":
            raise StoreError("no answer")
        return answer

    def create(self, name, content):
        def execute():
            if name in self.objects:
                raise ExistsError(name)
            self.objects[name] = content

        self._request(execute)

    def find(self, name):
        return self._request(lambda: self.objects.get(name))

    def sizes(self):
        return self._request(lambda: {n: len(c) for n, c in self.objects.items()})

    def delete(self, name):
        self._request(lambda: self.objects.pop(name, None))

    def where(self, name):
        return name

    def finish(self):
        for execute in self.late:
            execute()


def _quietly(execute):
    with contextlib.suppress(ExistsError):
        execute()


def until_it_works(attempt):
    while True:
        try:
            return attempt()
        except StoreError:
            continue


def read_whole(store):
    file = SegmentedFile(store, sleep=lambda _: None)
    try:
        return file.open().read().decode()
    except FileNotFoundError:
        return ""


def lines_of(text):
    return [tuple(line.split()) for line in text.splitlines()]


class Simulation:
    def __init__(self, seed, share):
        self.random = random.Random(seed)
        self.turns = Turns(self.random.choice)
        self.store = FaultyStore(self.turns, lambda: self.fault(share))
        self.confirmed, self.recalled, self.seen = [], {}, []

    def fault(self, share):
        kinds = ("lost", "no answer", "twice", "later")
        return self.random.choice(kinds) if self.random.random() < share else ""

    def write(self, count):
        """Be a coordinator: take the file over, read it, and append until another one has it."""
        name = threading.current_thread().name
        for _ in range(self.random.randrange(12)):
            self.turns.pause()
        writer = until_it_works(lambda: SegmentWriter(self.store, name, FencedError))
        self.recalled[name] = until_it_works(lambda: read_whole(self.store))
        for number in range(count):
            line = f"{name} {number}"
            try:
                until_it_works(lambda line=line: writer.append(f"{line}\n".encode()))
            except FencedError:
                return
            self.confirmed.append(tuple(line.split()))
            if self.random.random() < 0.5:
                with contextlib.suppress(StoreError):
                    writer.tidy()

    def read(self):
        for _ in range(6):
            self.seen.append(until_it_works(lambda: read_whole(self.store)))


@given(seed=st.integers(0, 2**32), writers=st.integers(1, 3), share=st.sampled_from([0, 0.1, 0.4]))
@settings(max_examples=120)
def test_each_line_is_there_once_of_one_writer_at_a_time(seed, writers, share):
    merged, segments.MERGED = segments.MERGED, 3
    try:
        simulated = Simulation(seed, share)
        actors = {f"w{i}": lambda: simulated.write(14) for i in range(writers)}
        simulated.turns.run({**actors, "reader": simulated.read})
    finally:
        segments.MERGED = merged
    simulated.store.finish()
    simulated.store.fault = lambda: ""
    whole = read_whole(simulated.store)
    lines = lines_of(whole)
    assert len(set(lines)) == len(lines)
    assert set(simulated.confirmed) <= set(lines)
    owners = [name for i, (name, _) in enumerate(lines) if i == 0 or lines[i - 1][0] != name]
    assert len(set(owners)) == len(owners)  # one after the other
    for name in owners:  # each wrote without a gap, from what it had read on
        own = [int(number) for one, number in lines if one == name]
        assert own == list(range(len(own)))
        before = whole[: whole.index(f"{name} 0\n")]
        assert simulated.recalled[name] == before
    for text in simulated.seen:
        assert whole.startswith(text)


def test_the_simulation_finds_a_writer_that_does_not_seal(monkeypatch):
    """The negative control."""
    monkeypatch.setattr(
        SegmentWriter,
        "_open",
        lambda self: max((s.last for s in segments.spans_in(self._store)), default=0),
    )
    check = test_each_line_is_there_once_of_one_writer_at_a_time.hypothesis.inner_test

    def check_many():
        for seed in range(300):
            check(seed, 3, 0.1)

    with pytest.raises(AssertionError):
        check_many()


# -- the parts


def test_names_tell_what_an_object_holds():
    for span in (Span(1, 1, 5), Span(33, 64, 0)):
        assert span_of(span.name, span.size + segments._HEADER) == span
    for name in ("x.jsonl", "00000001.json", "1.jsonl", "00000002-00000001.jsonl", ".probe-1"):
        assert span_of(name, 1000) is None


def test_of_several_objects_with_a_segment_the_largest_counts():
    spans = [Span(n, n, 1) for n in range(1, 8)]
    assert cover(spans) == spans
    assert cover([*spans, Span(1, 4, 4), Span(1, 2, 2)]) == [Span(1, 4, 4), *spans[4:]]
    with pytest.raises(SegmentError, match=r"00000003\.jsonl is missing.*number 7"):
        cover([s for s in spans if s.first != 3])
    assert cover([]) == []


def test_whole_blocks_are_due_and_huge_ones_are_not():
    spans = [Span(n, n, 10) for n in range(1, 40)]
    assert due_merge(spans) == spans[:32]
    assert due_merge([Span(1, 32, 320), *spans[32:]]) == []
    assert due_merge(spans[:31]) == []
    large = [Span(n, n, segments.MOST_MERGED // 8) for n in range(1, 33)]
    assert due_merge(large) == []
    blocks = [Span(n, n + 31, 10) for n in range(1, 1024, 32)]
    assert due_merge(blocks) == blocks


def test_a_long_file_is_in_few_objects_and_reads_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "MERGED", 4)
    store = Store(tmp_path / "journal")
    writer = SegmentWriter(store, "one", FencedError)
    reader = SegmentedFile(store, sleep=lambda _: None)
    for number in range(1, 150):
        writer.append(b"%d\n" % number)
        while writer.number % 4 == 0 and writer.tidy():
            pass
    assert len(store.names()) < 20
    with reader.open() as file:
        assert [int(line) for line in file] == list(range(1, 150))
        file.seek(-4, 2)
        assert file.read() == b"149\n"
    assert (tmp_path / "journal" / name_of(1, 1)).exists()  # the seal stays


@pytest.mark.parametrize("damage", ["cut", "flip", "swap", "gone"])
def test_a_damaged_or_missing_segment_is_named(tmp_path, damage):
    writer = SegmentWriter(Store(tmp_path), "one", FencedError)
    for number in range(4):
        writer.append(b"line %d\n" % number)
    victim = tmp_path / name_of(3, 3)
    data = victim.read_bytes()
    if damage == "gone":
        victim.unlink()
    else:
        other = packed(4, 4, "one", b"line 1\n")
        victim.write_bytes({"cut": data[:-1], "flip": data[:-2] + b"0\n", "swap": other}[damage])
    with pytest.raises(SegmentError, match=r"00000003\.jsonl is (missing|damaged)"):
        SegmentedFile(Store(tmp_path), sleep=lambda _: None).open().read()


def test_a_file_at_rest_is_listed_less_and_less_often(tmp_path):
    store, now, listed = Store(tmp_path), [0.0], []
    sizes = store.sizes
    store.inside = lambda _: store
    writer = SegmentWriter(store, "one", FencedError)
    store.sizes = lambda: listed.append(now[0]) or sizes()
    file = SegmentedFile(store, clock=lambda: now[0])
    for _ in range(200):
        now[0] += 0.1
        file.exists()
    assert 8 < len(listed) < 20
    writer.append(b"new\n")
    count = len(listed)
    for _ in range(30):
        now[0] += 0.1
        file.exists()
    assert len(listed) - count > 3
