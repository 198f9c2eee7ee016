"""Methods for language models, and for normalisations in low precision."""

from raytrain_plus.algorithms.alibi import ALiBi
from raytrain_plus.algorithms.attention_convolution import AttentionConvolution
from raytrain_plus.algorithms.gated_linear_units import GatedLinearUnits
from raytrain_plus.algorithms.low_precision_group_norm import LowPrecisionGroupNorm
from raytrain_plus.algorithms.low_precision_layer_norm import LowPrecisionLayerNorm
from raytrain_plus.algorithms.n_gram_embeddings import NGramEmbeddings
from raytrain_plus.algorithms.seq_length_warmup import SeqLengthWarmup
from raytrain_plus.algorithms.squared_relu import SquaredReLU
from tests.algorithms.cases import Case
from tests.algorithms.tiny import TinyImages, TinyTokens

CASES = [
    Case(aspect=ALiBi(), tasks=(TinyTokens,), acts=None),
    Case(
        aspect=SeqLengthWarmup(duration="0.5dur", start=3, multiple=2),
        tasks=(TinyTokens,),
        acts=lambda step: step < 6,
        neutral=SeqLengthWarmup(duration="0ba"),
        same_function=True,
    ),
    Case(aspect=GatedLinearUnits(std=0.1), tasks=(TinyTokens,), acts=None),
    Case(aspect=SquaredReLU(), tasks=(TinyTokens,), acts=None),
    Case(aspect=AttentionConvolution(width=2), tasks=(TinyTokens,), acts=None),
    Case(aspect=NGramEmbeddings(buckets=32), tasks=(TinyTokens,), acts=None),
    Case(aspect=LowPrecisionLayerNorm(), tasks=(TinyTokens,), acts=None),
    Case(aspect=LowPrecisionGroupNorm(), tasks=(TinyImages,), acts=None),
]
