"""The methods that come with the package, by name."""

from raytrain_plus.algorithms.alibi import ALiBi
from raytrain_plus.algorithms.aspect import Aspect
from raytrain_plus.algorithms.attention_convolution import AttentionConvolution
from raytrain_plus.algorithms.aug_mix import AugMix
from raytrain_plus.algorithms.blur_pool import BlurPool
from raytrain_plus.algorithms.channels_last import ChannelsLast
from raytrain_plus.algorithms.col_out import ColOut
from raytrain_plus.algorithms.compile import Compile
from raytrain_plus.algorithms.cut_mix import CutMix
from raytrain_plus.algorithms.cut_out import CutOut
from raytrain_plus.algorithms.ema import EMA
from raytrain_plus.algorithms.factorize import Factorize
from raytrain_plus.algorithms.gated_linear_units import GatedLinearUnits
from raytrain_plus.algorithms.ghost_batch_norm import GhostBatchNorm
from raytrain_plus.algorithms.gradient_clipping import GradientClipping
from raytrain_plus.algorithms.gyro_dropout import GyroDropout
from raytrain_plus.algorithms.label_smoothing import LabelSmoothing
from raytrain_plus.algorithms.layer_freezing import LayerFreezing
from raytrain_plus.algorithms.low_precision import LowPrecision
from raytrain_plus.algorithms.low_precision_group_norm import LowPrecisionGroupNorm
from raytrain_plus.algorithms.low_precision_layer_norm import LowPrecisionLayerNorm
from raytrain_plus.algorithms.mix_up import MixUp
from raytrain_plus.algorithms.monitors import (
    LearningRateMonitor,
    MemoryMonitor,
    NormMonitor,
    Profile,
)
from raytrain_plus.algorithms.n_gram_embeddings import NGramEmbeddings
from raytrain_plus.algorithms.progressive_resizing import ProgressiveResizing
from raytrain_plus.algorithms.rand_augment import RandAugment
from raytrain_plus.algorithms.sam import SAM
from raytrain_plus.algorithms.samples import Samples
from raytrain_plus.algorithms.selective_backprop import SelectiveBackprop
from raytrain_plus.algorithms.seq_length_warmup import SeqLengthWarmup
from raytrain_plus.algorithms.squared_relu import SquaredReLU
from raytrain_plus.algorithms.squeeze_excite import SqueezeExcite
from raytrain_plus.algorithms.stochastic_depth import StochasticDepth
from raytrain_plus.algorithms.swa import SWA
from raytrain_plus.algorithms.weight_standardization import WeightStandardization

MONITORS: dict[str, type[Aspect]] = {
    kind.__name__: kind
    for kind in (LearningRateMonitor, NormMonitor, MemoryMonitor, Profile, Samples)
}
"""Aspects that only look. They are named as algorithms are."""

ALGORITHMS: dict[str, type[Aspect]] = {
    kind.__name__: kind
    for kind in (
        ALiBi,
        AttentionConvolution,
        AugMix,
        BlurPool,
        ChannelsLast,
        ColOut,
        Compile,
        CutMix,
        CutOut,
        EMA,
        Factorize,
        GatedLinearUnits,
        GhostBatchNorm,
        GradientClipping,
        GyroDropout,
        LabelSmoothing,
        LayerFreezing,
        LowPrecision,
        LowPrecisionGroupNorm,
        LowPrecisionLayerNorm,
        MixUp,
        NGramEmbeddings,
        ProgressiveResizing,
        RandAugment,
        SAM,
        SelectiveBackprop,
        SeqLengthWarmup,
        SquaredReLU,
        SqueezeExcite,
        StochasticDepth,
        SWA,
        WeightStandardization,
    )
}
