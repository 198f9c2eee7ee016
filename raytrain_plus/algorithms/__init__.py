"""Speed-up algorithms as aspects around an unchanged model, one method per file."""

from raytrain_plus.algorithms.alibi import ALiBi as ALiBi
from raytrain_plus.algorithms.aspect import JOIN_POINTS as JOIN_POINTS
from raytrain_plus.algorithms.aspect import Advice as Advice
from raytrain_plus.algorithms.aspect import Aspect as Aspect
from raytrain_plus.algorithms.aspect import AspectError as AspectError
from raytrain_plus.algorithms.aspect import AspectWarning as AspectWarning
from raytrain_plus.algorithms.aspect import EvaluatedSet as EvaluatedSet
from raytrain_plus.algorithms.aspect import Step as Step
from raytrain_plus.algorithms.aspect import Training as Training
from raytrain_plus.algorithms.attention_convolution import (
    AttentionConvolution as AttentionConvolution,
)
from raytrain_plus.algorithms.aug_mix import AugMix as AugMix
from raytrain_plus.algorithms.blur_pool import BlurPool as BlurPool
from raytrain_plus.algorithms.channels_last import ChannelsLast as ChannelsLast
from raytrain_plus.algorithms.col_out import ColOut as ColOut
from raytrain_plus.algorithms.compile import Compile as Compile
from raytrain_plus.algorithms.cut_mix import CutMix as CutMix
from raytrain_plus.algorithms.cut_out import CutOut as CutOut
from raytrain_plus.algorithms.ema import EMA as EMA
from raytrain_plus.algorithms.factorize import Factorize as Factorize
from raytrain_plus.algorithms.gated_linear_units import GatedLinearUnits as GatedLinearUnits
from raytrain_plus.algorithms.ghost_batch_norm import GhostBatchNorm as GhostBatchNorm
from raytrain_plus.algorithms.gradient_clipping import GradientClipping as GradientClipping
from raytrain_plus.algorithms.gyro_dropout import GyroDropout as GyroDropout
from raytrain_plus.algorithms.label_smoothing import LabelSmoothing as LabelSmoothing
from raytrain_plus.algorithms.layer_freezing import LayerFreezing as LayerFreezing
from raytrain_plus.algorithms.low_precision import LowPrecision as LowPrecision
from raytrain_plus.algorithms.low_precision_group_norm import (
    LowPrecisionGroupNorm as LowPrecisionGroupNorm,
)
from raytrain_plus.algorithms.low_precision_layer_norm import (
    LowPrecisionLayerNorm as LowPrecisionLayerNorm,
)
from raytrain_plus.algorithms.mix_up import MixUp as MixUp
from raytrain_plus.algorithms.monitors import LearningRateMonitor as LearningRateMonitor
from raytrain_plus.algorithms.monitors import MemoryMonitor as MemoryMonitor
from raytrain_plus.algorithms.monitors import NormMonitor as NormMonitor
from raytrain_plus.algorithms.monitors import Profile as Profile
from raytrain_plus.algorithms.n_gram_embeddings import NGramEmbeddings as NGramEmbeddings
from raytrain_plus.algorithms.naming import parse_algorithm as parse_algorithm
from raytrain_plus.algorithms.progressive_resizing import ProgressiveResizing as ProgressiveResizing
from raytrain_plus.algorithms.rand_augment import RandAugment as RandAugment
from raytrain_plus.algorithms.registry import ALGORITHMS as ALGORITHMS
from raytrain_plus.algorithms.sam import SAM as SAM
from raytrain_plus.algorithms.samples import Samples as Samples
from raytrain_plus.algorithms.selective_backprop import SelectiveBackprop as SelectiveBackprop
from raytrain_plus.algorithms.seq_length_warmup import SeqLengthWarmup as SeqLengthWarmup
from raytrain_plus.algorithms.squared_relu import SquaredReLU as SquaredReLU
from raytrain_plus.algorithms.squeeze_excite import SqueezeExcite as SqueezeExcite
from raytrain_plus.algorithms.stochastic_depth import StochasticDepth as StochasticDepth
from raytrain_plus.algorithms.surgery import Surgery as Surgery
from raytrain_plus.algorithms.swa import SWA as SWA
from raytrain_plus.algorithms.weave import Weave as Weave
from raytrain_plus.algorithms.weight_standardization import (
    WeightStandardization as WeightStandardization,
)
