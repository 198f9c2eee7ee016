"""Methods that change images."""

from raytrain_plus.algorithms.aug_mix import AugMix
from raytrain_plus.algorithms.col_out import ColOut
from raytrain_plus.algorithms.cut_mix import CutMix
from raytrain_plus.algorithms.cut_out import CutOut
from raytrain_plus.algorithms.mix_up import MixUp
from raytrain_plus.algorithms.progressive_resizing import ProgressiveResizing
from raytrain_plus.algorithms.rand_augment import RandAugment
from tests.algorithms.cases import Case
from tests.algorithms.tiny import TinyImages

CASES = [
    Case(
        aspect=AugMix(width=2, depth=2, severity=8.0, alpha=0.7),
        tasks=[TinyImages],
        neutral=AugMix(depth=0),
    ),
    Case(
        aspect=ColOut(rows=0.2, columns=0.3),
        tasks=[TinyImages],
        neutral=ColOut(rows=0.0, columns=0.0),
    ),
    Case(aspect=CutMix(alpha=0.8), tasks=[TinyImages], neutral=CutMix(alpha=0.0)),
    Case(
        aspect=CutOut(holes=2, length=0.3, fill=0.5),
        tasks=[TinyImages],
        neutral=CutOut(length=0.0),
    ),
    Case(aspect=MixUp(alpha=0.5), tasks=[TinyImages], neutral=MixUp(alpha=0.0)),
    Case(
        aspect=ProgressiveResizing(initial=0.6, start="2ba", finish="0.75dur", multiple=2),
        tasks=[TinyImages],
        acts=lambda step: step < 9,
        neutral=ProgressiveResizing(initial=1.0),
    ),
    Case(
        aspect=RandAugment(depth=3, severity=6.0),
        tasks=[TinyImages],
        neutral=RandAugment(depth=0),
    ),
]
