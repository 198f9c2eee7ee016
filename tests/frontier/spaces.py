"""A space for the tests, with all features of a space."""

from hypothesis import strategies as st

from raytrain_plus.frontier.domain import Choice, Range
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.frontier.space import RecipeSpace

BASELINE = Recipe(
    duration="4000sp",
    batch_size=32,
    task={"learning_rate": 0.1, "schedule_name": "linear", "warmup": 0.2},
    algorithms={"GradientClipping": {}},
)

SAID = {
    "baseline": BASELINE,
    "aspects": {
        "BlurPool": {},
        "EMA": {"half_life": Choice(values=("0.02dur", "0.05dur"))},
        "SWA": {"interval": "0.02dur"},  # conflicts with EMA, as both declare
        "LabelSmoothing": {"smoothing": Range(low=0.01, high=0.2, log=True)},
        "MixUp": {"alpha": Range(low=0.1, high=0.4)},
        "CutMix": {},
        "CutOut": {},
        "AugMix": {"width": Range(low=2, high=4)},
    },
    "excludes": [["MixUp", "CutMix"], ["CutMix", "CutOut"]],
    "task": {"learning_rate": Range(low=0.01, high=1.0, log=True)},
    "batch_sizes": (32, 64),
    "durations": ("1000sp", "2000sp", "4000sp"),
}
SPACE = RecipeSpace(**SAID)


def domain_values(domain):
    """Return a strategy for the values of a setting."""
    if isinstance(domain, Choice):
        return st.sampled_from(domain.values)
    if domain.whole:
        return st.integers(domain.low, domain.high)
    return st.floats(domain.low, domain.high)


def configs(space=SPACE):
    """Return a strategy for flat configs as Ray Tune draws them, with settings of all aspects."""
    return st.fixed_dictionaries({k: domain_values(d) for k, d in space.entries.items()})
