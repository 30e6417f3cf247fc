"""Converts a GGUF file of the Llama family to a Hugging Face model folder, with the gguf package only.

transformers also reads GGUF files, but cannot save the loaded model, and its tokenizer splits digits differently.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import gguf

# Tensor names of a block in llama.cpp and in transformers.
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def convert(weights: Path, folder: Path) -> None:
    """Converts a GGUF file of the Llama family to config, safetensors and tokenizer files.

    Args:
        weights: GGUF file.
        folder: Existing folder for the output.
    """
    import gguf
    import safetensors

    reader = gguf.GGUFReader(weights)
    config = _config(reader)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    halves = {name: _bfloat16(values) for name, values in _tensors(reader, heads, kv_heads)}
    tensors = {  # these point to memory of `halves`
        name: safetensors.TensorSpec(
            dtype="bfloat16", shape=bits.shape, data_ptr=bits.ctypes.data, data_len=bits.nbytes
        )
        for name, bits in halves.items()
    }
    safetensors.serialize_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors creates files that only the owner can read
    config["tie_word_embeddings"] = "lm_head.weight" not in halves
    _write_json(folder / "config.json", config)
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "generation_config.json", ids)
    _write_tokenizer(reader, config["max_position_embeddings"], folder)


def _config(reader: "gguf.GGUFReader") -> dict[str, Any]:
    def value(key: str) -> Any:
        return reader.fields[key].contents()

    heads, hidden = value("llama.attention.head_count"), value("llama.embedding_length")
    theta = float(value("llama.rope.freq_base"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": value("llama.vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": value("llama.feed_forward_length"),
        "num_hidden_layers": value("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("llama.attention.head_count_kv"),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": value("llama.context_length"),
        # Stored as float32: 9.99999974e-06 was written as 1e-05.
        "rms_norm_eps": float(str(np.float32(value("llama.attention.layer_norm_rms_epsilon")))),
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        # transformers 5 reads rope_parameters; 4.x and other runtimes read rope_theta, with a default of 10000.
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "pad_token_id": value("tokenizer.ggml.padding_token_id"),
        "use_cache": True,
        # Name in transformers 5, and name in older versions.
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


def _tensors(reader: "gguf.GGUFReader", heads: int, kv_heads: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields all tensors in float32 with their names in transformers."""
    from gguf import dequantize

    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        owner, kind = tensor.name.rsplit(".", 1)
        if not owner.startswith("blk."):
            yield f"{OTHER_NAMES[owner]}.{kind}", values
            continue
        _, layer, part = owner.split(".")
        if part in ("attn_q", "attn_k"):
            values = _unpermute(values, heads if part == "attn_q" else kv_heads)
        yield f"model.layers.{layer}.{BLOCK_NAMES[part]}.{kind}", values


def _unpermute(values: np.ndarray, heads: int) -> np.ndarray:
    """Restores the row order of a query or key projection, which llama.cpp changes for rotary embeddings.

    llama.cpp interleaves the two halves of each head that transformers rotates: `0 2 1 3` for a head of size 4.
    """
    pairs = values.shape[0] // heads // 2
    return values.reshape(heads, pairs, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """Returns the bits of float32 values as bfloat16, rounded to nearest, ties to even (numpy has no such type)."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _write_tokenizer(reader: "gguf.GGUFReader", max_length: int, folder: Path) -> None:
    import gguf
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    def value(key: str) -> Any:
        return reader.fields[f"tokenizer.ggml.{key}"].contents()

    if (value("model"), value("pre")) != ("gpt2", "smollm"):
        raise ValueError(f"expected SmolLM's byte-level BPE, found {value('model')}/{value('pre')}")
    tokens: list[str] = value("tokens")
    merges = [tuple(merge.split(" ")) for merge in value("merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, value("token_type"), strict=True) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id", "unk": "unknown_token_id"}
    special = {f"{role}_token": tokens[value(key)] for role, key in roles.items()}
    plain = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length}
    _write_json(folder / "tokenizer_config.json", plain | {"clean_up_tokenization_spaces": False} | special)
    _write_json(folder / "special_tokens_map.json", special)
    template = reader.fields["tokenizer.chat_template"].contents()
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
