"""The matrix: every aspect keeps every promise, alone and together with every other.

An aspect without an entry in `cases` fails the suite.
"""

import itertools
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from raytrain_plus.algorithms import ALGORITHMS, Aspect, Weave, parse_algorithm
from raytrain_plus.algorithms.naming import describe, make
from raytrain_plus.frontier.recipe import bundled_names, read_recipe
from raytrain_plus.streams.loader import load_part
from raytrain_plus.streams.opening import open_source
from raytrain_plus.task import load_task
from raytrain_plus.training import exchange
from tests.algorithms.covering import covering_groups
from tests.algorithms.fleet import Fleet
from tests.algorithms.matrix import CASES
from tests.algorithms.tiny import RANKS, TinyImages, TinyTokens, alone, build, trained

ROOT = Path(__file__).parents[2]
BY_NAME = {case.aspect.name: case for case in CASES}
SINGLE = [(case, task) for case in CASES for task in case.tasks]


def each(chosen):
    names = [f"{case.aspect.name}-{task.__name__}" for case, task in chosen]
    return pytest.mark.parametrize(("case", "task"), chosen, ids=names)


single = each(SINGLE)
STEPS = 12
REFERENCE = {
    "cluttered_digits": "raytrain_plus.reference.cluttered_digits:ClutteredDigits",
    "byte_gpt": "raytrain_plus.reference.byte_gpt:ByteGPT",
}


def compatible(one, other):
    names = {one.aspect.name, other.aspect.name}
    return not any(
        names & set(a.aspect.conflicts_with) and b.aspect.name in a.aspect.conflicts_with
        for a, b in ((one, other), (other, one))
    )


def in_pairs(task):
    """Return the cases that are tested in pairs; slow ones are tested in the weaves only."""
    return [case for case in CASES if task in case.tasks and not case.slow]


PAIRS = [
    (list(pair), task)
    for task in (TinyImages, TinyTokens)
    for pair in itertools.combinations(in_pairs(task), 2)
    if compatible(*pair)
]
AT_ONCE = 6  # aspects of a weave
WEAVES = [
    ([BY_NAME[name] for name in group], task)
    for task in (TinyImages, TinyTokens)
    for group in covering_groups(
        [case.aspect.name for case in in_pairs(task)],
        lambda one, other: compatible(BY_NAME[one], BY_NAME[other]),
        AT_ONCE,
    )
]


def fresh(*aspects):
    """Return a function that makes equal aspects, as another process would."""
    return lambda: [make(describe(aspect)) for aspect in aspects]


def snake(name):
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def test_every_algorithm_has_an_entry_a_card_and_tests_of_its_own():
    assert BY_NAME.keys() == ALGORITHMS.keys()
    assert len(BY_NAME) == len(CASES)
    tests = "\n".join(path.read_text() for path in (ROOT / "tests/algorithms").glob("test_*.py"))
    cards = {path.stem: path.read_text() for path in (ROOT / "docs/algorithms").glob("*.md")}
    for name, kind in ALGORITHMS.items():
        card = cards[kind.__module__.rpartition(".")[2]]
        assert name in card
        assert "## Effect measured here" in card
        assert "_to be measured_" not in card
        assert re.search(rf"\b{name}\(", tests), f"no test makes a {name}"


def test_every_entry_has_settings_other_than_the_defaults():
    for case in CASES:
        if type(case.aspect).model_fields:
            assert case.aspect != type(case.aspect)(), case.aspect.name


@pytest.mark.parametrize("case", CASES, ids=list(BY_NAME))
def test_settings_survive_a_conversion_to_data_and_to_text(case):
    described = describe(case.aspect)
    assert make(described) == case.aspect
    settings = ",".join(f"{key}={value!r}" for key, value in described.settings.items())
    assert parse_algorithm(f"{described.kind}:{settings}") == case.aspect


@single
def test_it_trains_the_same_bits_on_any_workers_through_a_kill_a_grow_and_a_resume(
    case, task, tmp_path
):
    undisturbed, _ = trained(task(), fresh(case.aspect)(), steps=7)
    fleet = Fleet(task(), fresh(case.aspect))
    fleet.run(1)
    fleet.resize(3)
    fleet.run(1)
    fleet.run(2, kill_in="backward")
    fleet.run(1)
    fleet.resume(tmp_path / "checkpoint")  # in the middle of an epoch
    fleet.run(1)
    fleet.resize(1)
    fleet.run(2)
    fleet.resize(2)
    fleet.run(1)
    assert fleet.replica.step == 7
    assert fleet.digests() == {undisturbed.replica.digest()}
    assert fleet.replica.samples == undisturbed.replica.samples
    assert fleet.replica.tokens == undisturbed.replica.tokens


def together(chosen):
    """Parametrize a test with the cases of a weave, and a task."""
    entries = [
        pytest.param(cases, task, id="-".join([*(c.aspect.name for c in cases), task.__name__]))
        for cases, task in chosen
    ]
    return pytest.mark.parametrize(("cases", "task"), entries)


def assert_same_bits_in_any_order(cases, task, folder):
    """Compare a disturbed fleet, which lists the aspects in reverse order, with one worker."""
    aspects = [case.aspect for case in cases]
    undisturbed, _ = trained(task(), fresh(*aspects)(), steps=3)
    fleet = Fleet(task(), fresh(*reversed(aspects)))
    fleet.resize(2)
    fleet.run(1)
    fleet.resize(3)
    fleet.run(1, kill_in="backward")
    fleet.run(1)
    fleet.resume(folder)  # in the middle of an epoch
    fleet.run(1)
    assert fleet.digests() == {undisturbed.replica.digest()}


def test_each_pair_is_in_a_weave():
    def pairs_of(groups):
        return {
            (frozenset((one.aspect.name, other.aspect.name)), task)
            for cases, task in groups
            for one, other in itertools.combinations(cases, 2)
        }

    assert pairs_of(WEAVES) == pairs_of(PAIRS)  # also: no weave has two that exclude each other
    assert len(PAIRS) > 300
    assert len(WEAVES) < len(PAIRS) / 5
    assert pairs_of(WEAVES[1:]) != pairs_of(PAIRS)  # the control: each weave is needed


@together(WEAVES)
def test_a_weave_trains_the_same_bits_in_either_order_of_listing(cases, task, tmp_path):
    assert_same_bits_in_any_order(cases, task, tmp_path / "checkpoint")


@pytest.mark.pairs
@together(PAIRS)
def test_a_pair_trains_the_same_bits_in_either_order_of_listing(cases, task, tmp_path):
    """Each pair alone, so that no third aspect hides the effect of one on the other."""
    assert_same_bits_in_any_order(cases, task, tmp_path / "checkpoint")


@single
def test_it_acts_when_it_should_and_only_then(case, task):
    loop, weave = build(task(), [case.aspect])
    loop.begin_generation([range(RANKS)], alone())
    weave.spent()
    acted = []
    for step in range(STEPS):
        loop.run_step([task.part(step, r) for r in range(RANKS)])
        acted.append(weave.spent()[case.aspect.name]["acted"] > 0)
    expected = [bool(case.acts and case.acts(step)) for step in range(STEPS)]
    assert acted == expected


@single
def test_it_changes_what_is_trained(case, task):
    plain, _ = trained(task(), steps=STEPS)
    changed, _ = trained(task(), [case.aspect], steps=STEPS)
    if case.averages:
        assert any(name.startswith("aspects/") for name in changed.replica.tensors())
        return
    assert changed.replica.digest() != plain.replica.digest()


@each([(case, task) for case, task in SINGLE if not case.slow])
def test_it_trains_the_same_bits_if_the_exchange_overlaps_the_backward(case, task, monkeypatch):
    undisturbed, _ = trained(task(), fresh(case.aspect)(), steps=5)
    monkeypatch.setattr(exchange, "_OVERLAP_BYTES", 0)  # these models are small
    fleet = Fleet(task(), fresh(case.aspect))
    fleet.resize(3)
    fleet.run(5)
    assert fleet.digests() == {undisturbed.replica.digest()}


@each([(case, task) for case, task in SINGLE if case.neutral is not None])
def test_at_its_neutral_setting_it_does_nothing(case, task):
    plain, losses = trained(task(), steps=3)
    neutral, same = trained(task(), [case.neutral], steps=3)
    assert same == losses
    state = neutral.replica.tensors()
    own = {name: t for name, t in state.items() if not name.startswith("aspects/")}
    assert own.keys() == plain.replica.tensors().keys()
    assert all(torch.equal(own[name], t) for name, t in plain.replica.tensors().items())


@single
def test_it_is_undone_cleanly(case, task):
    loop, _ = trained(task(), [case.aspect], steps=3)
    batch = task.part(99, 0)
    model = loop.replica.model.eval()
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    with torch.no_grad():
        before = task().forward(model, batch)
        model = loop.replica.undo_fit().eval()
        after = task().forward(model, batch)
    plain = task().model()
    assert [(n, type(m)) for n, m in model.named_modules()] == [
        (n, type(m)) for n, m in plain.named_modules()
    ]
    state = model.state_dict()
    assert {n: (t.shape, t.dtype) for n, t in state.items()} == {
        n: (t.shape, t.dtype) for n, t in plain.state_dict().items()
    }
    optimized = {id(p) for g in loop.replica.optimizer.param_groups for p in g["params"]}
    assert optimized == {id(p) for p in model.parameters()}
    plain.load_state_dict(state)
    if case.same_function:
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    if case.acts is not None and not case.averages:
        assert all(torch.equal(state[name], weights[name]) for name in state)


def test_a_weave_of_all_that_go_together_trains_the_same_bits():
    for task in (TinyImages, TinyTokens):
        chosen = []
        for case in CASES:
            if task in case.tasks and not case.slow and all(compatible(case, c) for c in chosen):
                chosen.append(case)
        aspects = [case.aspect for case in chosen]
        assert len(aspects) > 5
        undisturbed, _ = trained(task(), fresh(*aspects)(), steps=2)
        fleet = Fleet(task(), fresh(*reversed(aspects)))
        fleet.resize(3)
        fleet.run(2)
        assert fleet.digests() == {undisturbed.replica.digest()}
        assert [a.name for a in Weave(aspects).aspects] == [
            a.name for a in Weave(aspects[::-1]).aspects
        ]


# -- negative controls: the matrix notices what breaks a promise


class DrawsFromItsOwnGenerator(Aspect):
    """Keeps a generator whose state depends on the number of draws of this worker."""

    def batch(self, step):
        generator = GENERATORS.setdefault(id(self), torch.Generator().manual_seed(1))
        image = step.batch["image"]
        step.batch["image"] = image + torch.rand(image.shape, generator=generator)
        yield


class CountsOnTheSide(Aspect):
    """Keeps a count that newcomers do not receive."""

    def update(self, step):
        COUNTS[id(self)] = COUNTS.get(id(self), 0) + 1
        for parameter in step.model.parameters():
            parameter.grad *= COUNTS[id(self)]
        yield


class LosesItsDisguise(Aspect):
    """Leaves the weights changed if a step fails."""

    def step(self, step):
        weight = next(step.model.parameters())
        with torch.no_grad():
            weight += 1
        yield
        with torch.no_grad():
            weight -= 1


GENERATORS, COUNTS = {}, {}


@pytest.mark.parametrize("others", [0, AT_ONCE - 1])
@pytest.mark.parametrize("kind", [DrawsFromItsOwnGenerator, CountsOnTheSide, LosesItsDisguise])
def test_an_aspect_that_breaks_the_promise_is_noticed_alone_and_in_a_weave(kind, others):
    cases = next(cases for cases, task in WEAVES if task is TinyImages)[:others]
    make_others = fresh(*(case.aspect for case in cases))
    undisturbed, _ = trained(TinyImages(), [kind(), *make_others()], steps=3)
    fleet = Fleet(TinyImages(), lambda: [kind(), *make_others()])
    fleet.run(1)
    fleet.resize(2)
    fleet.run(1, kill_in="backward") if kind is LosesItsDisguise else fleet.run(1)
    fleet.run(3 - fleet.replica.step)
    assert fleet.digests() != {undisturbed.replica.digest()}


# -- the package's recipes, on the reference tasks


def parts_of(task, rows=4):
    """Return a task of the package with parts cut from its own data."""
    table = task.data().slice(0, 4000)
    source = open_source(table, None)
    order = source.plain_order(1)

    class Parts(type(task)):
        @staticmethod
        def part(step, rank):
            start = (step * RANKS + rank) * rows
            return load_part(source, order, 0, 0, start, start + rows)

    settings = {field.name: getattr(task, field.name) for field in fields(task)}
    return Parts(**settings)


@pytest.mark.parametrize("name", bundled_names())
def test_a_recipe_trains_the_same_bits_on_any_workers(name, tmp_path):
    recipe = read_recipe(name)
    task = parts_of(load_task(REFERENCE[name.partition("/")[0]], recipe.task))
    undisturbed, _ = trained(task, recipe.aspects(), steps=6)
    fleet = Fleet(task, recipe.aspects)
    fleet.run(1)
    fleet.resize(3)
    fleet.run(2, kill_in="backward")
    fleet.run(2)
    fleet.resume(tmp_path / "checkpoint")
    fleet.run(1)
    fleet.resize(1)
    fleet.run(2)
    assert fleet.digests() == {undisturbed.replica.digest()}
