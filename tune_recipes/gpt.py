"""Which recipes train a byte-level GPT faster: `raytrain_plus/reference/byte_gpt.py`.

python tune_recipes/gpt.py --budget 1h
raytrain-plus sweep tune_recipes/gpt.py --budget 1h
ray job submit --working-dir . -- python tune_recipes/gpt.py --budget 1h
"""

from raytrain_plus.frontier.definition import Sweep
from raytrain_plus.frontier.domain import Choice, Range
from raytrain_plus.frontier.points import Objective
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.frontier.space import RecipeSpace

SWEEP = Sweep(
    name="gpt",
    task="raytrain_plus.reference.byte_gpt:ByteGPT",
    space=RecipeSpace(
        baseline=Recipe(
            duration="8000sp",
            batch_size=8,
            task={
                "learning_rate": 6.7e-3,
                "weight_decay": 0.107,
                "beta2": 0.99,
                "schedule_name": "linear",
                "warmup": 0.2,
            },
        ),
        aspects={
            "ALiBi": {},
            "AttentionConvolution": {"width": Choice(values=(3, 4))},
            "NGramEmbeddings": {
                "longest": Choice(values=(3, 2, 4)),
                "buckets": Choice(values=(4096, 2048, 8192)),
            },
            "SquaredReLU": {},
            "GatedLinearUnits": {},
            "GradientClipping": {"norm": Range(low=0.3, high=3.0, log=True)},
        },
        task={
            "learning_rate": Range(low=1.5e-3, high=2e-2, log=True),
            "weight_decay": Range(low=0.01, high=0.5, log=True),
        },
        batch_sizes=(8, 4, 16),
        durations=("2000sp", "4000sp", "8000sp"),
    ),
    objective=Objective(metric="bits_per_byte", mode="min"),
    beyond=("16000sp", "32000sp"),
    design_at="4000sp",
    design_seeds=5,
    most_promoted=4,
    logical_ranks=2,
    factors=("ALiBi", "AttentionConvolution", "NGramEmbeddings", "SquaredReLU"),
)

if __name__ == "__main__":
    from raytrain_plus.cli.sweep import main

    main(SWEEP)
