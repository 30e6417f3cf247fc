"""Prompt and completion are encoded apart; together they are the text, whatever the tokenizer does at its beginning."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers_by_family import FAMILIES, family_tokenizer

from llm_finetune.components.tokens.tokenize.encoder import Encoder, load_encoder


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory) -> dict[str, Encoder]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {name: load_encoder(str(family_tokenizer(folder / name, name)), "{{ messages }}") for name in FAMILIES}


def ids_of(encoder: Encoder, prompt: str, completion: str) -> list[int]:
    prompts = encoder.encode([prompt])
    return prompts[0].ids + encoder.completion_ids(encoder.encode_completions([completion], prompts)[0])


@settings(max_examples=25, deadline=None)
@given(prompt=st.text(max_size=9), between=st.sampled_from(["\n", "\n\n", " ", ":"]), completion=st.text(max_size=9))
def test_nothing_is_lost_or_added_between_prompt_and_completion(vocabularies, prompt, between, completion):
    text = f"Prompt {prompt}{between}"
    for encoder in vocabularies.values():
        tokenizer = encoder.tokenizer
        decoded = tokenizer.decode(ids_of(encoder, text, completion), skip_special_tokens=False)
        assert decoded == text + completion + tokenizer.eos_token


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompt", ["Question\n", "Question{end}", "Question{end}\n", ""])
@pytest.mark.parametrize("completion", ["?es", " Yes", "0"])
def test_a_completion_begins_as_it_does_behind_its_prompt(vocabularies, family, prompt, completion):
    encoder = vocabularies[family]
    prompt = prompt.format(end=encoder.tokenizer.eos_token)
    whole = encoder.encode([prompt + completion])[0].ids
    assert ids_of(encoder, prompt, completion) == [*whole, encoder.tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("family", "prefix"), [("qwen", ""), ("gemma", "<eos>"), ("llama2", "</s>"), ("tinyllama", "\n")]
)
def test_only_tokenizers_with_word_boundaries_of_their_own_need_a_prefix(vocabularies, family, prefix):
    assert vocabularies[family].prefix == prefix


def test_a_chat_template_without_a_beginning_token_gets_one_where_the_tokenizer_adds_it(tmp_path):
    folder = family_tokenizer(tmp_path / "tinyllama", "tinyllama")
    own = (folder / "chat_template.jinja").read_text()
    assert load_encoder(str(folder), None).tokenizer.chat_template == "{{ bos_token }}" + own
    folder = family_tokenizer(tmp_path / "llama", "llama")
    assert load_encoder(str(folder), None).tokenizer.chat_template == (folder / "chat_template.jinja").read_text()


@pytest.mark.parametrize("family", ["qwen", "tinyllama"])
def test_truncation_and_padding_of_a_tokenizer_file_are_left_out(tmp_path, family):
    folder = family_tokenizer(tmp_path / "saved", family)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(str(folder / "tokenizer.json"))
    encoder = load_encoder(str(folder), "{{ messages }}")
    text = "one two three four five six"
    for with_offsets in (False, True):
        ids = encoder.encode([text], with_offsets)[0].ids
        assert encoder.tokenizer.decode(ids, skip_special_tokens=False).strip() == text
    encoder.tokenizer.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "tokenizer.json").read_text())
    assert saved["truncation"] is None and saved["padding"] is None
