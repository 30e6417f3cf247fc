"""A tiny random Llama and its tokenizer, written as a Hugging Face folder in a fraction of a second.

`tiny_tokenizer` needs no torch; `tiny_model` adds the weights. The same arguments give the same bytes.
"""

import json
from pathlib import Path

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog. 0123456789",
    "### Instruction:\nTranslate the sentence into French.\n\n### Input:\nGood morning\n\n### Response:\nBonjour",
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nName three colours.<|im_end|>\n",
    '{"street": "Main Street", "number": "12", "city": "Springfield", "state": "IL"}',
    "every minute, every hour, at noon on Monday: 0 12 * * 1",
]


def tiny_tokenizer(folder: str | Path, *, vocabulary: int = 400, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """Writes a byte-level BPE tokenizer: any text goes in and comes back unchanged; no bos or eos is added by itself.

    Args:
        folder: Folder to write into; made when absent.
        vocabulary: Tokens at most, the four special ones (ids 0 to 3) included.
        chat_template: Its chat template; None for a tokenizer without one.

    Returns:
        The folder.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
        ),
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
        "unk_token": "<|endoftext|>",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|pad|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)
    return folder


def tiny_model(
    folder: str | Path,
    *,
    layers: int = 2,
    hidden: int = 64,
    head: int = 16,
    vocabulary: int = 400,
    tied: bool = False,
    dtype: str = "float32",
    seed: int = 0,
    chat_template: str | None = CHAT_TEMPLATE,
) -> Path:
    """Writes a random Llama with its tokenizer.

    Args:
        folder: Folder to write into; made when absent.
        layers: Decoder layers.
        hidden: Width, a multiple of `head`.
        head: Width of an attention head; vLLM on a CPU takes 32 and more. Half as many key-value heads as query heads.
        vocabulary: Rows of the embedding, at least the tokenizer's tokens.
        tied: Whether the head shares the embedding's weights.
        dtype: Type of the stored weights.
        seed: Seed of the weights.
        chat_template: As for `tiny_tokenizer`.

    Returns:
        The folder.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tiny_tokenizer(folder, vocabulary=vocabulary, chat_template=chat_template)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden // head,
        num_key_value_heads=max(hidden // head // 2, 1),
        max_position_embeddings=1024,
        tie_word_embeddings=tied,
        initializer_range=0.1,  # wide enough that tokens differ in probability
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder
