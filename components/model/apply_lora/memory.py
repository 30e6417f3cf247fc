"""GPU memory that LoRA training will take, estimated from the model's shape.

    weights      2 B per parameter in bfloat16; in NF4 the linear layers take 4.127 bits (4, an 8-bit scale per 64
                 weights, a 32-bit one per 256 scales: QLoRA, arXiv 2305.14314), the rest stays in bfloat16
    adapter      16 B per trainable parameter: float32 weight, gradient and Adam's two moments
    activations  per token and layer (10 d + 4 i) values of 2 B that the backward pass reads, with d the hidden width
                 and i that of the MLP; with checkpointing only d per layer, and one whole layer at a time
    loss         float32 logits of one chunk of tokens; the rest of the vocabulary projection is never kept
    reserve      CUDA context and libraries, and blocks that the allocator can't reuse

The activation figures fit what one H100 measured (bfloat16, attention of variable length, no padding): 1.1 B, 16.6k
tokens, no checkpointing: 30.7 GiB, estimated 31.4; 8 B, 8.2k tokens, checkpointing: 18.5 GiB, estimated 19.2.
Attention that builds a matrix of tokens by tokens takes more.
"""

from dataclasses import dataclass, replace

BYTES_BF16 = 2
BYTES_NF4 = (4 + 8 / 64 + 32 / (64 * 256)) / 8
BYTES_TRAINED = 16
VALUES_PER_HIDDEN, VALUES_PER_MLP = 10, 4
LOSS_CHUNK = 1024
RESERVE_BYTES, RESERVE_SHARE = 0.75 * 2**30, 0.05


@dataclass(frozen=True)
class Shape:
    """What of a model decides its memory.

    Attributes:
        linear_parameters: Parameters of the linear layers that 4 bit applies to: all but the head.
        other_parameters: Embedding, head and norms; tied ones once.
        layers: Decoder layers.
        hidden: Width of the hidden state.
        mlp: Width of the MLP; for a mixture of experts, times the experts that a token visits.
        vocabulary: Rows of the head.
    """

    linear_parameters: int
    other_parameters: int
    layers: int
    hidden: int
    mlp: int
    vocabulary: int


@dataclass(frozen=True)
class Plan:
    """What of a training decides its memory.

    Attributes:
        trainable: Trainable parameters.
        tokens: Tokens in a micro-batch.
        checkpointing: Whether activations are computed again in the backward pass.
        load_in_4bit: Whether the frozen weights are kept in NF4.
    """

    trainable: int
    tokens: int
    checkpointing: bool
    load_in_4bit: bool


@dataclass(frozen=True)
class Memory:
    """Estimated bytes by purpose."""

    weights: float
    adapter: float
    activations: float
    loss: float
    reserve: float

    @property
    def gib(self) -> float:
        """The sum, in GiB."""
        return (self.weights + self.adapter + self.activations + self.loss + self.reserve) / 2**30


def estimate(shape: Shape, plan: Plan) -> Memory:
    """Estimates the memory of one GPU that holds the whole model.

    Args:
        shape: The model.
        plan: The training.

    Returns:
        Bytes by purpose.
    """
    linear = BYTES_NF4 if plan.load_in_4bit else BYTES_BF16
    weights = shape.linear_parameters * linear + shape.other_parameters * BYTES_BF16
    layer = (VALUES_PER_HIDDEN * shape.hidden + VALUES_PER_MLP * shape.mlp) * BYTES_BF16
    kept = shape.layers * shape.hidden * BYTES_BF16 + layer if plan.checkpointing else shape.layers * layer
    parts = {
        "weights": weights,
        "adapter": plan.trainable * BYTES_TRAINED,
        "activations": plan.tokens * kept,
        "loss": min(plan.tokens, LOSS_CHUNK) * shape.vocabulary * 4,
    }
    return Memory(**parts, reserve=RESERVE_BYTES + RESERVE_SHARE * sum(parts.values()))


def advise(shape: Shape, plan: Plan, gpu_memory_gib: float, shortest: int) -> str:
    """Returns what to change so that a training fits.

    Args:
        shape: The model.
        plan: The training that does not fit.
        gpu_memory_gib: Memory of the GPU.
        shortest: Tokens of the longest row: a micro-batch can't be smaller.

    Returns:
        The mildest change that helps, as a sentence.
    """
    smaller = replace(plan, tokens=shortest)
    steps = [
        ("set gradient_checkpointing to on", replace(plan, checkpointing=True)),
        (f"set tokens_per_micro_batch to {shortest}", smaller),
        (
            f"set gradient_checkpointing to on and tokens_per_micro_batch to {shortest}",
            replace(smaller, checkpointing=True),
        ),
        ("set load_in_4bit and gradient_checkpointing to on", replace(plan, checkpointing=True, load_in_4bit=True)),
        (
            f"set load_in_4bit and gradient_checkpointing to on and tokens_per_micro_batch to {shortest}",
            replace(smaller, checkpointing=True, load_in_4bit=True),
        ),
    ]
    for change, changed in steps:
        needed = estimate(shape, changed).gib
        if changed != plan and needed <= gpu_memory_gib:
            return f"To fit, {change}: {needed:.1f} GiB."
    return "No setting makes it fit: take a larger GPU or a smaller model."
