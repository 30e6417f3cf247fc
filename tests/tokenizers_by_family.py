"""Small tokenizers that behave like those of families of models: byte-level or SentencePiece-style, with or without a beginning token."""

import json
from pathlib import Path

from tiny import CORPUS
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
FAMILIES = {
    # name: (special tokens, bos, eos, adds bos, SentencePiece style, chat template, end of turn)
    "smollm": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_start|>", "<|im_end|>", False, False, CHATML, "<|im_end|>"),
    "qwen": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|im_end|>", False, False, CHATML, "<|im_end|>"),
    "llama": (
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|begin_of_text|>", "<|end_of_text|>", True, False, LLAMA, "<|eot_id|>",
    ),
    "gemma": (["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], "<bos>", "<eos>", True, True, GEMMA, "<end_of_turn>"),
    "llama2": (["<unk>", "<s>", "</s>"], "<s>", "</s>", True, True, None, "</s>"),
    # Its tokenizer puts a word boundary behind every special token, not at the beginning alone; its template writes no bos.
    "tinyllama": (["<unk>", "<s>", "</s>"], "<s>", "</s>", True, True, ZEPHYR, "</s>"),
}  # fmt: skip


def family_tokenizer(folder: Path, family: str) -> Path:
    """Writes the tokenizer of a family, with the pad token equal to the end token, the trap of many base models."""
    special, bos, eos, adds_bos, sentencepiece, template, _ = FAMILIES[family]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE(byte_fallback=sentencepiece))
    alphabet = (
        [f"<0x{byte:02X}>" for byte in range(256)] if sentencepiece else sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    if sentencepiece:
        if family == "tinyllama":
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence([
            decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)
        ])  # fmt: skip
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    added = [AddedToken(token, special=True, normalized=False) for token in special]
    extra = [AddedToken(token, normalized=False) for token in alphabet] if sentencepiece else []
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*added, *extra], initial_alphabet=[] if sentencepiece else alphabet,
        show_progress=False,
    )  # fmt: skip
    # SentencePiece has no newline in its vocabulary: it is a byte, and merges with nothing.
    tokenizer.train_from_iterator(
        [line for text in CORPUS for line in text.split("\n")] if family == "tinyllama" else CORPUS, trainer
    )
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    content = json.loads(tokenizer.to_str())
    # The trainer makes every byte a special token; in SentencePiece models they are ordinary ones.
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in special]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": eos,
        "pad_token": eos,
        "model_max_length": 4096,
    }
    if bos:
        config["bos_token"] = bos
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return folder
