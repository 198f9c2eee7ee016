"""Which recipes classify cluttered digits faster: `raytrain_plus/reference/cluttered_digits.py`.

    python tune_recipes/digits.py --budget 30m
    raytrain-plus sweep tune_recipes/digits.py --budget 30m
    ray job submit --working-dir . -- python tune_recipes/digits.py --budget 30m

The task's own defaults are a tuned baseline at the reference duration of 48,000 samples; the sweep
tunes it again at each duration.
"""

from raytrain_plus.frontier.definition import Sweep
from raytrain_plus.frontier.domain import Choice, Range
from raytrain_plus.frontier.points import Objective
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.frontier.space import RecipeSpace

SWEEP = Sweep(
    name="digits",
    task="raytrain_plus.reference.cluttered_digits:ClutteredDigits",
    space=RecipeSpace(
        baseline=Recipe(
            duration="48000sp",
            batch_size=64,
            task={
                "learning_rate": 0.15,
                "weight_decay": 2.5e-3,
                "schedule_name": "linear",
                "warmup": 0.2,
            },
        ),
        aspects={
            "BlurPool": {},
            "EMA": {"half_life": Choice(values=("0.02dur", "0.01dur", "0.05dur"))},
            "LabelSmoothing": {"smoothing": Range(low=0.01, high=0.15)},
            "ProgressiveResizing": {},
            "SelectiveBackprop": {},
            "GradientClipping": {},
            "LowPrecision": {},
            "GhostBatchNorm": {"size": Choice(values=(8, 16))},
            "SqueezeExcite": {"min_channels": 32},
        },
        task={
            "learning_rate": Range(low=0.03, high=0.6, log=True),
            "weight_decay": Range(low=5e-4, high=1e-2, log=True),
        },
        batch_sizes=(64, 32, 128),
        durations=("12000sp", "24000sp", "48000sp", "96000sp"),
    ),
    objective=Objective(metric="accuracy", mode="max"),
    beyond=("192000sp",),
    design_at="24000sp",
    design_seeds=5,
    most_promoted=5,
    logical_ranks=2,  # more logical ranks for a batch of 64 would only cost time on two cores
    factors=("BlurPool", "EMA", "LabelSmoothing", "ProgressiveResizing"),
)

if __name__ == "__main__":
    from raytrain_plus.cli.sweep import main

    main(SWEEP)
