"""Tiny random models of other families than `tiny.tiny_model`'s Llama, each with a habit of its own."""

from pathlib import Path

from tiny import tiny_tokenizer

VOCABULARY = 400


def configurations() -> dict:
    """Returns a configuration per family.

    bloom and gpt_neo have attention functions of their own, without sdpa; gemma2 caps its attention logits; lfm2 has
    a convolution, which reads the tokens before.
    """
    from transformers import BloomConfig, Gemma2Config, GPTNeoConfig, Lfm2Config

    heads = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
    common = {"vocab_size": VOCABULARY, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2}
    return {
        "bloom": BloomConfig(hidden_size=32, n_layer=2, n_head=2, **common),
        "gpt_neo": GPTNeoConfig(
            hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
            max_position_embeddings=256, window_size=8, **common,
        ),
        "gemma2": Gemma2Config(
            **heads, head_dim=16, intermediate_size=64, attn_logit_softcapping=1.0, sliding_window=16, **common
        ),
        "lfm2": Lfm2Config(
            **heads, intermediate_size=64, layer_types=["conv", "full_attention"], conv_L_cache=3, **common
        ),
    }  # fmt: skip


def tiny_architecture(folder: str | Path, family: str) -> Path:
    """Writes a random model of a family with the tokenizer of `tiny`.

    Args:
        folder: Folder to write into; made when absent.
        family: A name from `configurations`.

    Returns:
        The folder.
    """
    import torch
    from transformers import AutoModelForCausalLM

    folder = tiny_tokenizer(folder, vocabulary=VOCABULARY)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(configurations()[family]).save_pretrained(folder)
    return folder
