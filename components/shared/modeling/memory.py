"""Estimate of the GPU memory of LoRA training, from the tensors that each operation saves for the backward pass.

Per token and layer, with d the hidden size, q and k the widths of queries and keys, i the intermediate size of the MLP;
2 B per value in bfloat16:

    norms        inputs of width d; transformers' own RMSNorm creates and saves them in float32, Liger's does not
    attention    queries q, keys and values 2 k, output q, and a float32 log-sum-exp per head; where the attention
                 function does not support grouped queries, keys and values are repeated to q
    eager        instead of the log-sum-exp, per head and token of the row: the softmax in float32, its copy for the
                 product with the values, and where scores are capped, the result of tanh
    MLP          inputs of SiLU and of the product, 3 i; Liger recomputes SiLU in the backward pass: 2 i
    adapters     inputs of the adapted layers, saved once for layers with the same input, and their r low-rank values;
                 the input of the output projection is the attention's output, already saved. With dropout each layer
                 saves its own copy and a mask of 1 B
    frozen       nothing: the gradient of a frozen linear layer's input needs only the weight

In addition: weights (NF4: 4 bits, an 8-bit scale per 64 weights and a 32-bit scale per 256 scales; arXiv 2305.14314);
the adapter (weight, gradient and Adam's two moments in float32, and the bfloat16 copies that autocast keeps; over NF4
all four in bfloat16, as in TRL, except DoRA's magnitudes); the transient gradients of one layer or of the fused head,
the larger of the two; and fragmentation of the allocator.

Measured on one H100 (docs/benchmarks.md); tests require the estimate to be at most 15 % above and never below, without
grouped queries: 1.1 B, 33.7k tokens: 38.4 GiB with Liger, 52.6 without, 37.1 in NF4, 56.0 with 50.0k tokens; 8 B, 8.2k
tokens: 43.7, 54.9, 34.0. On a CPU, tests count the saved tensors themselves, including those of eager attention, which
was not measured on a GPU.
"""

from dataclasses import dataclass

BYTES_BF16, BYTES_FP32 = 2, 4
BYTES_NF4 = (4 + 8 / 64 + 32 / (64 * 256)) / 8
TRAINED_COPIES = 4
"""Weight, gradient and Adam's two moments."""
# Tile of TRL's fused head: tokens by vocabulary (trl.kernels.chunked_logprob, trl.trainer.utils).
HEAD_TOKENS, HEAD_VOCABULARY = 4096, 32768
# The CUDA context and its libraries, which torch does not count, and a safety margin: on the H100, measurements are up
# to 3 % below the sum.
RESERVE_BYTES, RESERVE_SHARE = 0.75 * 2**30, 0.02


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that determine its memory.

    Attributes:
        linear_parameters: Parameters of the linear layers that 4 bit applies to: all but the head.
        other_parameters: Embedding, head and norms; tied ones once.
        layers: Decoder layers.
        hidden_size: Width of the hidden state.
        query_width: Width of the queries of all heads together.
        key_width: Width of the keys of all heads together; the same for the values.
        heads: Query heads.
        intermediate_size: Width of the MLP; for a mixture of experts, times the experts per token.
        vocab_size: Rows of the head.
        norms: Norms over the hidden state in a layer.
        softcapped: Whether attention scores are capped by tanh.
    """

    linear_parameters: int
    other_parameters: int
    layers: int
    hidden_size: int
    query_width: int
    key_width: int
    heads: int
    intermediate_size: int
    vocab_size: int
    norms: int = 2
    softcapped: bool = False


@dataclass(frozen=True)
class AdapterShape:
    """The sizes of an adapter that determine its memory.

    Attributes:
        trainable: Trainable parameters.
        saved_values: Values per token that all its layers save, in the precision of the products.
        mask_bytes: Bytes per token of the dropout masks.
        magnitudes: Trainable parameters that are DoRA's magnitudes.
    """

    trainable: int
    saved_values: int
    mask_bytes: int
    magnitudes: int = 0


@dataclass(frozen=True)
class TrainingPlan:
    """The choices of a training that determine its memory.

    Attributes:
        tokens: Tokens in a micro-batch.
        checkpointing: Whether activations are recomputed in the backward pass.
        load_in_4bit: Whether the frozen weights are kept in NF4.
        fused: Whether norms and MLP are Liger's.
        grouped_queries: Whether the attention function supports keys that several query heads share.
        dense_mask: Whether it reads a mask of tokens by tokens.
        value_bytes: Bytes of a value in the products: 2 for bfloat16, 4 for float32.
        processes: GPUs that train.
        sharded: Whether the GPUs shard the frozen weights (FSDP2).
        eager: Whether attention saves a score for every pair of tokens in a row.
        row_tokens: Tokens of a padded row; 0 where the rows of a micro-batch are flattened into one.
    """

    tokens: int
    checkpointing: bool
    load_in_4bit: bool
    fused: bool
    grouped_queries: bool
    dense_mask: bool = False
    value_bytes: int = BYTES_BF16
    processes: int = 1
    sharded: bool = False
    eager: bool = False
    row_tokens: int = 0

    @property
    def token_pairs(self) -> int:
        """Pairs of tokens that one attention head scores."""
        return self.tokens * (self.row_tokens or self.tokens)


@dataclass(frozen=True)
class Memory:
    """Estimated bytes by purpose."""

    weights: float
    adapter: float
    activations: float
    transient: float
    reserve: float

    @property
    def gib(self) -> float:
        """The sum, in GiB."""
        return (self.weights + self.adapter + self.activations + self.transient + self.reserve) / 2**30


def estimate(model: ModelShape, adapter: AdapterShape, plan: TrainingPlan) -> Memory:
    """Estimates the memory of one GPU.

    Args:
        model: The model.
        adapter: Its adapter.
        plan: The training.

    Returns:
        Bytes by purpose.
    """
    parts = {
        "weights": _weight_bytes(model, plan),
        "adapter": adapter_bytes(adapter, plan),
        "activations": plan.tokens * activation_bytes_per_token(model, adapter, plan),
        "transient": _transient_bytes(model, plan),
    }
    return Memory(**parts, reserve=RESERVE_BYTES + RESERVE_SHARE * sum(parts.values()))


def adapter_bytes(adapter: AdapterShape, plan: TrainingPlan) -> float:
    """Returns the bytes of the adapter: its weights, gradients and Adam's moments, and the copies of them."""
    copies = TRAINED_COPIES + (1 if plan.processes > 1 and not plan.sharded else 0)  # DDP's copies of the gradients
    in_bfloat16 = adapter.trainable - adapter.magnitudes if plan.load_in_4bit else 0
    in_float32 = adapter.trainable - in_bfloat16
    autocast = BYTES_BF16 if plan.value_bytes == BYTES_BF16 else 0
    return in_bfloat16 * copies * BYTES_BF16 + in_float32 * (copies * BYTES_FP32 + autocast)


def activation_bytes_per_token(model: ModelShape, adapter: AdapterShape, plan: TrainingPlan) -> float:
    """Returns the bytes per token that the decoder layers save for the backward pass."""
    keys = model.key_width if plan.grouped_queries else model.query_width
    values = 2 * model.query_width + 2 * keys + (2 if plan.fused else 3) * model.intermediate_size
    norm_bytes = plan.value_bytes if plan.fused else BYTES_FP32
    attention = plan.token_pairs / plan.tokens * _score_bytes(model, plan) if plan.eager else BYTES_FP32
    norms = model.norms * (model.hidden_size * norm_bytes + BYTES_FP32)
    layer = norms + model.heads * attention + values * plan.value_bytes
    adapters = adapter.saved_values * plan.value_bytes + adapter.mask_bytes
    if plan.checkpointing:  # the input of every layer, and the activations of the layer that is being recomputed
        return model.layers * model.hidden_size * plan.value_bytes + layer + adapters / model.layers
    return model.layers * layer + adapters


def _score_bytes(model: ModelShape, plan: TrainingPlan) -> int:
    copy = plan.value_bytes if plan.value_bytes != BYTES_FP32 else 0
    return BYTES_FP32 + copy + (plan.value_bytes if model.softcapped else 0)


def _weight_bytes(model: ModelShape, plan: TrainingPlan) -> float:
    linear = BYTES_NF4 if plan.load_in_4bit else plan.value_bytes
    whole = model.linear_parameters * linear + model.other_parameters * plan.value_bytes
    if not plan.sharded:
        return whole
    # Unsharded at the same time: the current layer and the prefetched next one; embedding and head stay after use.
    layer = model.linear_parameters * linear / model.layers
    return whole / plan.processes + 2 * layer + model.other_parameters * plan.value_bytes


def _transient_bytes(model: ModelShape, plan: TrainingPlan) -> float:
    """Returns the bytes that are needed only for a moment: the gradients of one layer, or of the head."""
    layer = (3 * model.intermediate_size + 4 * model.hidden_size) * plan.value_bytes * plan.tokens
    if plan.eager:  # the gradients of a layer's scores, before and after the softmax
        layer = max(layer, model.heads * plan.token_pairs * (BYTES_FP32 + plan.value_bytes))
    dequantized = model.linear_parameters / model.layers * BYTES_BF16 if plan.load_in_4bit else 0
    tile = min(plan.tokens, HEAD_TOKENS) * min(model.vocab_size, HEAD_VOCABULARY) * plan.value_bytes
    head = (3 * plan.value_bytes + BYTES_FP32) * model.hidden_size * plan.tokens + tile
    saved_by_head = 2 * model.hidden_size * plan.value_bytes * plan.tokens
    mask = (1 + plan.value_bytes) * plan.token_pairs if plan.dense_mask else 0
    return max(layer + dequantized, head) + saved_by_head + mask
