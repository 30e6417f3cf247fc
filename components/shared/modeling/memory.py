"""GPU memory that LoRA training takes, counted from what each operation keeps for the backward pass.

Per token and layer, with d the hidden width, q and k those of queries and keys, i that of the MLP; 2 B per value in
bfloat16:

    norms        inputs of width d; transformers' own RMSNorm makes and keeps them in float32, Liger's does not
    attention    queries q, keys and values 2 k, output q, and a float32 log-sum per head; where the attention function
                 can't share keys between query heads, keys and values are repeated to q
    eager        instead of the log-sum, per head and token of the row that the token is in: the softmax in float32, its
                 copy for the product with the values, and where scores are capped, tanh's result
    MLP          what SiLU and the product read, 3 i; Liger computes SiLU again in the backward pass: 2 i
    adapters     inputs of the adapted layers, once where they share one, and their r low-rank values; the output
                 projection's is the attention's output, already kept. With dropout each layer keeps its own copy and a
                 mask of 1 B
    frozen       nothing: the gradient of a frozen linear layer's input needs only the weight

Besides: weights (NF4: 4 bits, an 8-bit scale per 64 weights and a 32-bit one per 256 scales; arXiv 2305.14314), adapter
(weight, gradient and Adam's two moments in float32, and the bfloat16 copies that autocast keeps; over NF4 all four in
bfloat16, as TRL has it, but for DoRA's magnitudes), the passing gradients of one layer or of the fused head, whichever
is more, and what the allocator cannot use again.

One H100 measured (docs/benchmarks.md), against which tests hold the whole to 15 %, and never below, keys not shared:
1.1 B, 33.7k tokens: 38.4 GiB with Liger, 52.6 without, 37.1 in NF4, 56.0 with 50.0k tokens; 8 B, 8.2k tokens: 43.7,
54.9, 34.0. On a CPU, tests count the kept tensors themselves, those of eager attention too; no GPU measured that one.
"""

from dataclasses import dataclass

BYTES_BF16, BYTES_FP32 = 2, 4
BYTES_NF4 = (4 + 8 / 64 + 32 / (64 * 256)) / 8
TRAINED_COPIES = 4
"""Weight, gradient and Adam's two moments."""
# Tile of TRL's fused head: tokens by vocabulary (trl.kernels.chunked_logprob, trl.trainer.utils).
HEAD_TOKENS, HEAD_VOCABULARY = 4096, 32768
# The CUDA context and its libraries, which torch does not count, and the share by which the estimate lies above the
# sum: what the H100 measured lies up to 3 % below that.
RESERVE_BYTES, RESERVE_SHARE = 0.75 * 2**30, 0.02


@dataclass(frozen=True)
class Shape:
    """What of a model decides its memory.

    Attributes:
        linear_parameters: Parameters of the linear layers that 4 bit applies to: all but the head.
        other_parameters: Embedding, head and norms; tied ones once.
        layers: Decoder layers.
        hidden: Width of the hidden state.
        query: Width of the queries, all heads together.
        key: Width of the keys, all heads together; the values' is the same.
        heads: Query heads.
        mlp: Width of the MLP; for a mixture of experts, times the experts that a token visits.
        vocabulary: Rows of the head.
        norms: Norms over the hidden state in a layer.
        capped: Whether attention scores are capped by tanh.
    """

    linear_parameters: int
    other_parameters: int
    layers: int
    hidden: int
    query: int
    key: int
    heads: int
    mlp: int
    vocabulary: int
    norms: int = 2
    capped: bool = False


@dataclass(frozen=True)
class Adapter:
    """What of an adapter decides memory.

    Attributes:
        trainable: Trainable parameters.
        values: Values per token that all its layers keep in the precision of the products.
        mask_bytes: Bytes per token of their dropout masks.
        magnitudes: Those of the trainable parameters that are DoRA's magnitudes.
    """

    trainable: int
    values: int
    mask_bytes: int
    magnitudes: int = 0


@dataclass(frozen=True)
class Plan:
    """What of a training decides its memory.

    Attributes:
        tokens: Tokens in a micro-batch.
        checkpointing: Whether activations are computed again in the backward pass.
        load_in_4bit: Whether the frozen weights are kept in NF4.
        fused: Whether norms and MLP are Liger's.
        shared_keys: Whether the attention function shares keys between query heads.
        dense_mask: Whether it reads a mask of tokens by tokens.
        value_bytes: Bytes of a value in the products: 2 for bfloat16, 4 for float32.
        processes: GPUs that train.
        sharded: Whether they divide the frozen weights between them.
        eager: Whether attention keeps a score for every two tokens of a row.
        row_tokens: Tokens of a padded row; 0 where the rows of a micro-batch are flattened into one.
    """

    tokens: int
    checkpointing: bool
    load_in_4bit: bool
    fused: bool
    shared_keys: bool
    dense_mask: bool = False
    value_bytes: int = BYTES_BF16
    processes: int = 1
    sharded: bool = False
    eager: bool = False
    row_tokens: int = 0

    @property
    def scores(self) -> int:
        """Pairs of tokens that one head looks at."""
        return self.tokens * (self.row_tokens or self.tokens)


@dataclass(frozen=True)
class Memory:
    """Estimated bytes by purpose."""

    weights: float
    adapter: float
    activations: float
    passing: float
    reserve: float

    @property
    def gib(self) -> float:
        """The sum, in GiB."""
        return (self.weights + self.adapter + self.activations + self.passing + self.reserve) / 2**30


def estimate(shape: Shape, adapter: Adapter, plan: Plan) -> Memory:
    """Estimates the memory of one GPU.

    Args:
        shape: The model.
        adapter: Its adapter.
        plan: The training.

    Returns:
        Bytes by purpose.
    """
    parts = {
        "weights": _weights(shape, plan),
        "adapter": trained_bytes(adapter, plan),
        "activations": plan.tokens * kept_per_token(shape, adapter, plan),
        "passing": _passing(shape, plan),
    }
    return Memory(**parts, reserve=RESERVE_BYTES + RESERVE_SHARE * sum(parts.values()))


def trained_bytes(adapter: Adapter, plan: Plan) -> float:
    """Returns the bytes of the adapter: its weights, gradients and Adam's moments, and the copies made of them."""
    copies = TRAINED_COPIES + (1 if plan.processes > 1 and not plan.sharded else 0)  # DDP's copies of the gradients
    in_bfloat16 = adapter.trainable - adapter.magnitudes if plan.load_in_4bit else 0
    in_float32 = adapter.trainable - in_bfloat16
    autocast = BYTES_BF16 if plan.value_bytes == BYTES_BF16 else 0
    return in_bfloat16 * copies * BYTES_BF16 + in_float32 * (copies * BYTES_FP32 + autocast)


def kept_per_token(shape: Shape, adapter: Adapter, plan: Plan) -> float:
    """Returns the bytes per token that the decoder layers keep until the backward pass has used them."""
    keys = shape.key if plan.shared_keys else shape.query
    values = 2 * shape.query + 2 * keys + (2 if plan.fused else 3) * shape.mlp
    norm_bytes = plan.value_bytes if plan.fused else BYTES_FP32
    attention = plan.scores / plan.tokens * _score_bytes(shape, plan) if plan.eager else BYTES_FP32
    norms = shape.norms * (shape.hidden * norm_bytes + BYTES_FP32)
    layer = norms + shape.heads * attention + values * plan.value_bytes
    adapters = adapter.values * plan.value_bytes + adapter.mask_bytes
    if plan.checkpointing:  # every layer's input, and the one layer that is being computed again
        return shape.layers * shape.hidden * plan.value_bytes + layer + adapters / shape.layers
    return shape.layers * layer + adapters


def _score_bytes(shape: Shape, plan: Plan) -> int:
    copy = plan.value_bytes if plan.value_bytes != BYTES_FP32 else 0
    return BYTES_FP32 + copy + (plan.value_bytes if shape.capped else 0)


def _weights(shape: Shape, plan: Plan) -> float:
    linear = BYTES_NF4 if plan.load_in_4bit else plan.value_bytes
    whole = shape.linear_parameters * linear + shape.other_parameters * plan.value_bytes
    if not plan.sharded:
        return whole
    # Whole at one time: the layer at work and the next, gathered ahead; embedding and head stay after their use.
    layer = shape.linear_parameters * linear / shape.layers
    return whole / plan.processes + 2 * layer + shape.other_parameters * plan.value_bytes


def _passing(shape: Shape, plan: Plan) -> float:
    """Returns the bytes that only one moment needs: a layer's gradients, or the head's."""
    layer = (3 * shape.mlp + 4 * shape.hidden) * plan.value_bytes * plan.tokens
    if plan.eager:  # the gradients of a layer's scores, before and behind the softmax
        layer = max(layer, shape.heads * plan.scores * (BYTES_FP32 + plan.value_bytes))
    unpacked = shape.linear_parameters / shape.layers * BYTES_BF16 if plan.load_in_4bit else 0
    tile = min(plan.tokens, HEAD_TOKENS) * min(shape.vocabulary, HEAD_VOCABULARY) * plan.value_bytes
    head = (3 * plan.value_bytes + BYTES_FP32) * shape.hidden * plan.tokens + tile
    kept_by_head = 2 * shape.hidden * plan.value_bytes * plan.tokens
    mask = (1 + plan.value_bytes) * plan.scores if plan.dense_mask else 0
    return max(layer + unpacked, head) + kept_by_head + mask
