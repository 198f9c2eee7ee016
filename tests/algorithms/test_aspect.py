"""Aspects nest by their declarations, never by the order in which they are listed."""

import contextlib
import itertools

import pydantic
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.algorithms import (
    ALGORITHMS,
    Aspect,
    AspectError,
    GradientClipping,
    LabelSmoothing,
    Step,
    Training,
    Weave,
    parse_algorithm,
)
from raytrain_plus.algorithms.aspect import JOIN_POINTS
from raytrain_plus.algorithms.weave import in_order
from raytrain_plus.clock import Clock

CLOCK = Clock(total_steps=10, steps_per_epoch=5, batch_size=8, evaluate_every=5)
NAMES = "ABCDE"


def aspect(name, **declared):
    """Make an aspect that declares something: an order, a conflict, or advice."""
    return type(name, (Aspect,), declared)()


def make_step(number=3):
    model = torch.nn.Linear(1, 1)
    return Step(
        Training(
            model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1), clock=CLOCK, seed=17
        ),
        number,
    )


def outcome(aspects):
    """Return the order as names, or the error message."""
    try:
        return [one.name for one in in_order(aspects)]
    except AspectError as error:
        return str(error)


OTHERS = st.lists(st.sampled_from([*NAMES, "Absent"]), max_size=2)
DECLARED = st.fixed_dictionaries({"runs_before": OTHERS, "runs_after": OTHERS})


@given(st.dictionaries(st.sampled_from(NAMES), DECLARED, min_size=1), st.randoms())
def test_the_order_of_listing_never_matters(declared, chance):
    aspects = [aspect(name, **said) for name, said in declared.items()]
    expected = outcome(aspects)
    for _ in range(4):
        chance.shuffle(aspects)
        assert outcome(aspects) == expected
    if isinstance(expected, str):
        return
    place = expected.index
    for name, said in declared.items():
        assert all(place(name) < place(o) for o in said["runs_before"] if o in declared)
        assert all(place(name) > place(o) for o in said["runs_after"] if o in declared)


def test_declarations_decide_and_names_break_ties():
    assert outcome([aspect("B"), aspect("A"), aspect("C")]) == ["A", "B", "C"]
    assert outcome([aspect("B"), aspect("A", runs_after=["C"]), aspect("C")]) == ["B", "C", "A"]
    assert outcome([aspect("C", runs_before=["A"]), aspect("A"), aspect("B")]) == ["B", "C", "A"]


@pytest.mark.parametrize("conflicts", [{"A": ["B"]}, {"B": ["A"]}, {"A": ["B"], "B": ["A"]}])
def test_a_conflict_is_named_whichever_aspect_declares_it(conflicts):
    aspects = [aspect(name, conflicts_with=conflicts.get(name, ())) for name in "CBA"]
    for listed in itertools.permutations(aspects):
        with pytest.raises(AspectError, match=r"(A and B|B and A) cannot be used together"):
            Weave(listed)
    Weave([one for one in aspects if one.name != "A"])  # the control: one of them alone


def test_a_contradiction_names_the_aspects_in_it():
    a, b = aspect("A", runs_before=["B"]), aspect("B", runs_before=["A"])
    with pytest.raises(AspectError, match="the order of A, B contradicts itself"):
        Weave([b, aspect("C"), a])
    with pytest.raises(AspectError, match="the order of Own contradicts itself"):
        Weave([aspect("Own", runs_before=["Own"])])


def test_the_same_aspect_twice_is_refused():
    with pytest.raises(AspectError, match="GradientClipping is given twice"):
        Weave([GradientClipping(norm=1), LabelSmoothing(), GradientClipping(norm=2)])


# -- advice


def noting(name, log, **declared):
    """Make an aspect with advice around `step` that notes its start and its end."""

    def around(_, step):
        log.append((name, "begins", step.number))
        try:
            yield
        except KeyError:
            log.append((name, "fails", step.number))
            raise
        finally:
            log.append((name, "ends", step.number))

    return aspect(name, step=around, **declared)


def test_advice_nests_last_in_first_out():
    log = []
    weave = Weave([noting("B", log), noting("A", log), noting("C", log, runs_before=["A"])])
    with weave.around("step", make_step()):
        log.append("the point")
    names = [entry[:2] if isinstance(entry, tuple) else entry for entry in log]
    assert names == [
        ("B", "begins"),
        ("C", "begins"),
        ("A", "begins"),
        "the point",
        ("A", "ends"),
        ("C", "ends"),
        ("B", "ends"),
    ]
    assert {entry[2] for entry in log if isinstance(entry, tuple)} == {3}


def test_an_error_passes_through_all_advice_from_the_inside():
    log = []
    weave = Weave([noting("A", log), noting("B", log)])
    with pytest.raises(KeyError), weave.around("step", make_step()):
        raise KeyError
    assert [entry[:2] for entry in log[2:]] == [
        ("B", "fails"),
        ("B", "ends"),
        ("A", "fails"),
        ("A", "ends"),
    ]


def test_an_error_while_advice_starts_ends_the_advice_that_has_started():
    log = []

    def broken(_, step):
        raise KeyError(step.number)
        yield

    weave = Weave([noting("A", log), aspect("B", step=broken), noting("C", log)])
    with pytest.raises(KeyError), weave.around("step", make_step()):
        log.append("the point")
    assert [entry[:2] for entry in log] == [("A", "begins"), ("A", "fails"), ("A", "ends")]


def test_advice_must_not_yield_twice():
    def twice(_, step):
        yield step
        yield step

    point = Weave([aspect("A", loss=twice)]).around("loss", make_step())
    with pytest.raises(AspectError, match="yields twice"), point:
        pass


def test_advice_that_returns_before_it_yields_is_idle():
    def sometimes(_, step):
        if step.number == 3:
            return
        yield

    weave = Weave([aspect("A", loss=sometimes, step=sometimes), aspect("B", loss=sometimes)])
    for number in (2, 3, 4):
        with weave.around("loss", make_step(number)):
            pass
    spent = weave.spent()
    assert {name: (cost["acted"], cost["idle"]) for name, cost in spent.items()} == {
        "A": (2, 1),
        "B": (2, 1),
    }
    assert all(cost["seconds"] > 0 for cost in spent.values())
    assert weave.spent()["A"] == {"seconds": 0.0, "acted": 0, "idle": 0}


def test_an_idle_point_costs_nothing():
    weave = Weave([aspect("A", step=lambda _, step: iter([step]))])
    idle = [weave.around(point, make_step()) for point in JOIN_POINTS if point != "step"]
    assert len({id(context) for context in idle}) == 1
    assert isinstance(idle[0], contextlib.nullcontext)
    assert weave.around("step", make_step()) is not idle[0]
    assert weave.around("step", make_step()) is not weave.around("step", make_step())


def test_there_is_advice_for_every_join_point_and_no_other():
    for point in JOIN_POINTS:
        with pytest.raises(NotImplementedError):
            getattr(Aspect(), point)(make_step())
    with pytest.raises(KeyError):
        Weave([]).around("lunch", make_step())


# -- randomness and settings


def test_a_generator_follows_from_aspect_step_and_rank():
    def draw(name, number, rank):
        step = make_step(number)
        step.logical_rank = rank
        return torch.rand(2, generator=step.generator(aspect(name))).tolist()

    first = draw("A", 3, 0)
    torch.rand(5)
    assert draw("A", 3, 0) == first
    others = [draw("B", 3, 0), draw("A", 4, 0), draw("A", 3, 1)]
    assert len({tuple(numbers) for numbers in [first, *others]}) == 4


def test_settings_are_checked_and_cannot_be_changed():
    clipping = GradientClipping(norm=2)
    assert clipping.norm == 2.0
    with pytest.raises(pydantic.ValidationError):
        clipping.norm = 3.0
    for settings in ({"norm": 0}, {"norm": -1}, {"norm": "much"}, {"size": 1}):
        with pytest.raises(pydantic.ValidationError):
            GradientClipping(**settings)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("GradientClipping", GradientClipping()),
        ("GradientClipping:norm=0.5", GradientClipping(norm=0.5)),
        ("LabelSmoothing:smoothing=0.2", LabelSmoothing(smoothing=0.2)),
        ("LabelSmoothing: smoothing = 1 ,", LabelSmoothing(smoothing=1)),
    ],
)
def test_an_algorithm_is_read_from_a_text(text, made):
    assert parse_algorithm(text) == made


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Dropout", ["no algorithm is called 'Dropout'", *ALGORITHMS]),
        ("", ["no algorithm is called ''", *ALGORITHMS]),
        ("GradientClipping:norm", ["'norm' of GradientClipping is not of the form key=value"]),
        ("GradientClipping:norm=0", ["norm:", "greater than 0", "It has norm=1.0"]),
        ("GradientClipping:norm=big", ["norm:", "valid number", "It has norm=1.0"]),
        ("GradientClipping:size=1", ["size:", "not permitted", "It has norm=1.0"]),
        (
            "LabelSmoothing:smoothing=2,target=3",
            ["smoothing: ", "target: ", "It has smoothing=0.1"],
        ),
    ],
)
def test_an_unknown_algorithm_is_refused_with_a_list_of_known_ones(text, says):
    with pytest.raises(AspectError) as refused:
        parse_algorithm(text)
    for part in says:
        assert part in str(refused.value)


def test_every_algorithm_is_found_by_its_name():
    for name, kind in ALGORITHMS.items():
        assert parse_algorithm(name) == kind()
        assert kind().name == name
