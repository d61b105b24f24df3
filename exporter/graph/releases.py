"""What each release of onnxruntime takes, from 1.16 on.

Read from the releases themselves, not from their notes: of every minor release's CPU wheel for
Linux (its first patch) the registered schemas and CPU kernels were listed
(`get_all_operator_schema` and `get_all_opkernel_def` of its Python module, which 1.15 lacks), and
models of one node were opened in it, one an opset, an IR version, an element type and a number of
bits. docs/Versioning.md of microsoft/onnxruntime promises that a release runs whatever an earlier
one ran, so that one number, the first release, says all.

Float16 is in no table: where the CPU has no kernel for it, every release computes in float32.
"""

from __future__ import annotations

from exporter.target import OLDEST_RUNTIME

# The releases that were looked at: 1.OLDEST to 1.NEWEST.
OLDEST = OLDEST_RUNTIME
NEWEST = 32

# Newest ai.onnx opset and newest IR version -> first minor release that opens it.
OPSETS = {19: 16, 20: 17, 21: 18, 22: 21, 23: 23, 24: 24, 25: 24, 26: 25, 27: 32, 28: 32}
IR_VERSIONS = {9: 16, 10: 18, 11: 23, 12: 24, 13: 24, 14: 32}

# Element types whose constants older releases do not hold, or have no CPU kernel for.
TYPES = {"int4": 19, "uint4": 19, "int2": 24, "uint2": 24, "float8e8m0": 27}

# Operators of com.microsoft with a CPU kernel, by the first minor release that has it. Those of
# OLDEST may be older. LATE holds the operators of ai.onnx that came later than their opset, and
# LATE_KERNELS those that were taken apart before they had a kernel: in ORT format nobody does that.
_CONTRIB = {
    16: "Attention AttnLSTM BeamSearch BiasGelu BifurcationDetector CDist "
    "ConvTransposeWithDynamicPads CropAndResize DequantizeLinear DynamicQuantizeLSTM "
    "DynamicQuantizeMatMul EmbedLayerNormalization ExpandDims FastGelu FusedConv FusedGemm "
    "FusedMatMul GatherND Gelu GreedySearch GridSample Inverse MatMulFpQ4 MatMulInteger16 "
    "MatMulIntegerToFloat MaxpoolWithMask MultiHeadAttention MurmurHash3 NGramRepeatBlock "
    "NhwcMaxPool Pad QAttention QEmbedLayerNormalization QGemm QLinearAdd QLinearAveragePool "
    "QLinearConcat QLinearConv QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul "
    "QLinearSigmoid QLinearSoftmax QLinearWhere QuantizeLinear QuickGelu Range SampleOp Sampling "
    "SkipLayerNormalization SparseToDenseMatMul Tokenizer TransposeMatMul Trilu Unique "
    "WordConvEmbedding",
    17: "MatMulBnb4 MatMulNBits RotaryEmbedding SkipSimplifiedLayerNormalization WhisperBeamSearch",
    18: "GroupQueryAttention",
    19: "SparseAttention",
    20: "DecoderMaskedMultiHeadAttention DynamicTimeWarping GatherBlockQuantized UnfoldTensor",
    23: "QMoE",
    24: "MoE",
    26: "CausalConvWithState LinearAttention",
    29: "MRotaryEmbedding",
    30: "EngramGate GatedAdd GatedRMSNorm LinearAttentionGate NGramHashMapping",
    31: "BranchwiseRMSNorm HyperConnectionPostMix HyperConnectionPreMix ScaledSiLU "
    "VarlenNGramHashMapping",
    32: "GatedDeltaNet GatherPacked MoEGroupRouter VarlenCausalConvWithState",
}
CONTRIB = {name: minor for minor, names in _CONTRIB.items() for name in names.split()}
LATE = {"DeformConv": 25, "TensorScatter": 25}
LATE_KERNELS = {"Gelu": 18}

# An attribute that a release does not know is refused ("Unrecognized attribute"), even with its
# default value; files in ORT format spell out every default of the release that wrote them.
ATTRIBUTES = {
    "Attention": {"rotary_embedding_dim": 17},
    "GatherBlockQuantized": {"bits": 23},
    "GroupQueryAttention": {
        "smooth_softmax": 20,
        "softcap": 20,
        "qk_output": 23,
        "k_quant_type": 25,
        "kv_cache_bit_width": 25,
        "v_quant_type": 25,
        "qk_norm_epsilon": 28,
        "sliding_window_cache": 29,
        "causal": 30,
        "k_norm_epsilon": 32,
        "q_norm_epsilon": 32,
    },
    "MatMulNBits": {"weight_prepacked": 28},
    "MultiHeadAttention": {"unidirectional": 17},
    "RotaryEmbedding": {"is_packed_batching": 19},
}

# Values of an attribute that a release does not compute.
VALUES = {("MatMulNBits", "bits"): {2: 24, 8: 22}}

# First minor release -> inputs that an operator may have from there on.
INPUTS = {
    "GroupQueryAttention": {18: 9, 22: 11, 23: 12, 25: 14, 28: 16, 32: 17},
    "MatMulNBits": {17: 4, 18: 5, 19: 6},
    "MultiHeadAttention": {16: 8, 22: 10},
}


def first_release(table: dict[int, int], value: int) -> int | None:
    """The first minor release that takes `value`; OLDEST below the table, None beyond it."""
    if value <= min(table):
        return OLDEST
    return table.get(value)


def minor_of(version: str) -> int:
    """`1.20.1` -> 20, at most NEWEST: later releases run what earlier ones ran."""
    return min(int(version.split(".")[1]), NEWEST)
