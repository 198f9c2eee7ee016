"""The space of recipes: every config is a valid recipe, and every recipe a config."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raytrain_plus.frontier.domain import Choice, Range
from raytrain_plus.frontier.space import RecipeSpace, SpaceError, excluded, switches
from tests.frontier.spaces import BASELINE, SAID, SPACE, configs

EXCLUSIONS = [("EMA", "SWA"), ("MixUp", "CutMix"), ("CutMix", "CutOut")]


@settings(max_examples=50)
@given(configs())
def test_every_config_is_a_recipe_of_compatible_aspects(config):
    recipe = SPACE.recipe(config)
    assert {aspect.name for aspect in recipe.aspects()} == recipe.algorithms.keys()
    assert "GradientClipping" in recipe.algorithms  # the baseline's own
    for a, b in EXCLUSIONS:
        assert not {a, b} <= recipe.algorithms.keys()


@settings(max_examples=50)
@given(configs())
def test_a_recipe_and_its_config_are_equivalent(config):
    recipe = SPACE.recipe(config)
    back = SPACE.config(recipe)
    assert SPACE.recipe(back) == recipe
    assert back.items() <= config.items()
    off = {key.partition(".")[0] for key in config.keys() - back.keys()}
    assert not off & set(SPACE.on(config))  # only settings of aspects that are off are left out


def test_the_baseline_is_in_its_own_space():
    assert SPACE.recipe({}) == BASELINE
    assert SPACE.recipe(SPACE.config(BASELINE)) == BASELINE


def test_typical_recipes_add_one_aspect_to_the_baseline():
    recipe = SPACE.recipe_with(["EMA", "LabelSmoothing"], "1000sp")
    assert recipe.duration == "1000sp"
    assert recipe.task == BASELINE.task
    assert recipe.algorithms == {
        "GradientClipping": {},
        "EMA": {"half_life": "0.02dur"},
        "LabelSmoothing": {"smoothing": pytest.approx(0.0447, abs=1e-4)},
    }
    assert SPACE.recipe_with([]) == BASELINE


@pytest.mark.parametrize("pair", EXCLUSIONS)
def test_aspects_that_exclude_each_other_are_refused_together(pair):
    assert "exclude each other" in SPACE.refusal(pair)
    with pytest.raises(SpaceError, match="exclude each other"):
        SPACE.recipe_with(pair)
    assert SPACE.refusal([pair[0]]) is None
    assert SPACE.refusal(["MixUp", "CutOut"]) is None  # each excludes CutMix, not the other


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"Blurpool": True}, "'Blurpool' is not in the space, which has duration, batch_size"),
        ({"batch_size": 48}, "batch_size=48 is not in the space: it is one of 32, 64"),
        ({"task.learning_rate": 2.0}, "learning_rate=2.0 is not in the space: it is 0.01 to 1.0"),
        ({"BlurPool": 1}, "BlurPool=1"),
        ({"EMA_or_SWA": "EMA"}, "turns EMA on must say EMA.half_life"),
    ],
)
def test_a_config_outside_of_the_space_is_refused(config, told):
    with pytest.raises(SpaceError, match=told):
        SPACE.recipe(config)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"duration": "3000sp"}, "duration='3000sp' is not in the space"),
        ({"algorithms": {}}, "algorithms are {}"),
        ({"algorithms": {"GradientClipping": {}, "SAM": {}}}, "'SAM'"),
        ({"algorithms": {"GradientClipping": {}, "SWA": {"interval": "0.1dur"}}}, "0.1dur"),
        ({"algorithms": {"GradientClipping": {}, "BlurPool": {"min_channels": 9}}}, "min_channels"),
        ({"algorithms": {"GradientClipping": {}, "LabelSmoothing": {}}}, "smoothing=None"),
        ({"task": {"learning_rate": 0.1}}, "warmup"),
    ],
)
def test_a_recipe_outside_of_the_space_is_refused(change, told):
    with pytest.raises(SpaceError, match=told):
        SPACE.config(BASELINE.model_copy(update=change))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"aspects": {}, "excludes": [], "task": {}, "batch_sizes": ()}, "the space is empty"),
        ({"aspects": {"BlurPol": {}}, "excludes": []}, "no algorithm is called 'BlurPol'"),
        ({"aspects": {"EMA": {"half": "1ba"}}, "excludes": []}, "settings of EMA: half"),
        (
            {
                "aspects": {"LabelSmoothing": {"smoothing": Range(low=0.1, high=3.0)}},
                "excludes": [],
            },
            "settings of LabelSmoothing: smoothing",
        ),
        ({"aspects": {"GradientClipping": {}}, "excludes": []}, "is in the baseline and so in"),
        ({"excludes": [["MixUp", "SAM"]]}, "excludes: SAM is not among the aspects"),
        ({"task": {"momentum": Range(low=0.8, high=0.99)}}, "does not say its momentum"),
        ({"task": {"learning_rate": Range(low=0.2, high=1.0)}}, "baseline is not in its own space"),
        ({"batch_sizes": (64, 128)}, "batch_size=32 is not in the space"),
        ({"batch_sizes": (0, 32)}, "greater than 0"),
        ({"durations": ("1000sp", "2ep")}, "several units"),
        ({"durations": ("2000sp", "1000sp")}, "must rise"),
        ({"durations": ("1000sp", "long")}, "'long' is not a number and a unit"),
        ({"learning_rate": 1}, "learning_rate"),
    ],
)
def test_a_space_that_contradicts_itself_is_refused(change, told):
    with pytest.raises(ValidationError, match=told):
        RecipeSpace(**{**SAID, **change})


def test_a_space_can_be_read_from_plain_data():
    plain = SPACE.model_dump(mode="json")
    assert plain["task"]["learning_rate"] == {"low": 0.01, "high": 1.0, "log": True}
    assert RecipeSpace.model_validate(plain) == SPACE


NAMES = list("abcdef")
PAIRS = st.sets(st.tuples(*[st.sampled_from(NAMES)] * 2).filter(lambda p: p[0] != p[1]))


@given(PAIRS)
def test_switches_offer_only_allowed_combinations(drawn):
    pairs = {frozenset(pair) for pair in drawn}
    found = switches(NAMES, pairs)
    assert sorted(name for s in found for name in frozenset().union(*s.choices.values())) == NAMES
    reachable = [frozenset()]
    for switch in found:
        reachable = [one | more for one in reachable for more in switch.choices.values()]
        assert switch.choices[switch.off] == frozenset()
    allowed = [
        frozenset(n for i, n in enumerate(NAMES) if bits >> i & 1)
        for bits in range(2 ** len(NAMES))
    ]
    assert len(reachable) == len(set(reachable))
    assert set(reachable) == {names for names in allowed if not excluded(names, pairs)}


@given(PAIRS, st.sets(st.sampled_from(NAMES)))
def test_a_switch_finds_the_value_of_the_aspects_that_are_on(drawn, wanted):
    pairs = {frozenset(pair) for pair in drawn}
    on = set()
    for name in sorted(wanted):
        if not excluded(on | {name}, pairs):
            on.add(name)
    for switch in switches(NAMES, pairs):
        assert switch.choices[switch.value_of(on)] <= on


def test_aspects_of_one_class_name_are_refused(tmp_path):
    source = "from raytrain_plus.algorithms import Aspect\nclass BlurPool(Aspect):\n    pass\n"
    (tmp_path / "own_aspects.py").write_text(source)
    own = f"{tmp_path}/own_aspects.py:BlurPool"
    space = RecipeSpace(baseline=BASELINE, aspects={own: {}})
    assert space.recipe({"BlurPool": True}).algorithms.keys() == {"GradientClipping", own}
    with pytest.raises(ValidationError, match="same class name"):
        RecipeSpace(baseline=BASELINE, aspects={own: {}, "BlurPool": {}})


def test_a_single_value_is_a_choice_too():
    space = RecipeSpace(
        baseline=BASELINE, aspects={"EMA": {"half_life": Choice(values=("0.02dur",))}}
    )
    assert space.rungs == ("4000sp",)
    assert space.recipe_with(["EMA"]).algorithms["EMA"] == {"half_life": "0.02dur"}
