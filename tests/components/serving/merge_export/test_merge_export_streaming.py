"""The merge from files gives the very weights of a merge in memory, in the memory of one file."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.utils import set_module_tensor_to_device
from merge_export_adapter import export, make_adapter
from safetensors.torch import load_file
from tiny import tiny_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from llm_finetune.components.serving.merge_export import merge, parity, shards

VARIANTS = {
    "plain": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "all-linear": {"target_modules": "all-linear"},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "saved head": {"modules_to_save": ["lm_head"]},
    "saved embedding and norm": {"modules_to_save": ["embed_tokens", "norm"]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base") / "model", dtype="bfloat16")


@pytest.mark.parametrize("load_in_4bit", [False, True])
@pytest.mark.parametrize("lora", VARIANTS.values(), ids=VARIANTS)
def test_weights_are_those_of_a_merge_in_memory(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: dict, load_in_4bit: bool
) -> None:
    monkeypatch.setattr(shards, "CHUNK_VALUES", 1)  # several blocks of rows even in a tiny model
    adapter = make_adapter(base, tmp_path / "ft_result", load_in_4bit, **lora)
    rows, stored, answered = parity.parity_rows(adapter), {}, {}
    for way in (merge.StreamingMerger, merge.InMemoryMerger):
        merger, folder = way(base, adapter, load_in_4bit), tmp_path / way.__name__
        answered[way] = [merger.adapter_predictions(rows), merger.adapter_predictions(rows, original=True)]
        folder.mkdir()
        merger.write(folder, torch.float32)
        answered[way].append(merger.merged_predictions(folder, rows, torch.float32))
        stored[way] = load_file(folder / "model.safetensors")
        if way is merge.StreamingMerger:  # in the base's own precision only what the adapter changes is written anew
            (tmp_path / "patched").mkdir()
            merger.write(tmp_path / "patched", torch.bfloat16)
            patched = load_file(tmp_path / "patched" / "model.safetensors")
    ours, theirs = stored.values()
    assert ours.keys() == theirs.keys() == patched.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert all(torch.equal(patched[name], theirs[name].to(torch.bfloat16)) for name in theirs)
    losses = [[answers.loss for answers in ways] for ways in answered.values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert load_in_4bit == (abs(losses[0][0] - losses[0][1]) > 1e-4)


def test_the_weights_say_their_type_where_the_configuration_does_not(base: Path, tmp_path: Path) -> None:
    silent = shutil.copytree(base, tmp_path / "silent")
    config = json.loads((silent / "config.json").read_text())
    for name in ("dtype", "torch_dtype"):
        config.pop(name, None)
    (silent / "config.json").write_text(json.dumps(config))
    assert merge.stored_dtype(silent) == torch.bfloat16
    assert merge.stored_dtype(tiny_model(tmp_path / "full")) == torch.float32


def test_architecture_with_other_names_in_its_files_is_merged_in_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    like = tiny_model(tmp_path / "like")
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MixtralConfig(
        vocab_size=LlamaConfig.from_pretrained(like).vocab_size, num_key_value_heads=2, num_local_experts=2, **shape
    )
    torch.manual_seed(0)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(like).save_pretrained(tmp_path / "base")
    adapter = make_adapter(tmp_path / "base", tmp_path / "ft_result", target_modules=["q_proj", "v_proj"])
    facts = export(tmp_path / "base", adapter, tmp_path, dtype="float32")
    assert "merging in memory: the files of MixtralForCausalLM have" in capsys.readouterr().out
    assert facts.agreement == 1.0 and facts.max_logit_difference < 1e-3


def test_memory_is_that_of_one_file(tmp_path: Path) -> None:
    config = LlamaConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, vocab_size=400, num_attention_heads=8,
        num_key_value_heads=4, tie_word_embeddings=False, dtype="bfloat16",
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    block = (torch.randn(1 << 16) * 0.02).to(torch.bfloat16)
    for name, parameter in list(model.named_parameters()):
        values = block.repeat(-(-parameter.numel() // len(block)))[: parameter.numel()].view(parameter.shape)
        set_module_tensor_to_device(model, name, "cpu", values)
    model.save_pretrained(tmp_path / "base", max_shard_size="35MB")
    AutoTokenizer.from_pretrained(tiny_model(tmp_path / "like")).save_pretrained(tmp_path / "base")
    adapter = make_adapter(tmp_path / "base", tmp_path / "ft_result", target_modules=["q_proj"])
    del model
    shards = [file.stat().st_size for file in (tmp_path / "base").glob("model-*.safetensors")]
    assert len(shards) >= 8 and sum(shards) > 250e6
    merging = (
        "import json, sys, torch\n"
        "from pathlib import Path\n"
        "from llm_finetune.components.serving.merge_export import merge, parity\n"
        "def peak(): return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) * 1024\n"
        "base, adapter, folder = map(Path, sys.argv[1:])\n"
        "torch.set_num_threads(1)\n"
        "rows = parity.parity_rows(adapter)[:2]\n"
        "before = peak()\n"
        "merger = merge.create_merger(base, adapter, False)\n"
        "merger.adapter_predictions(rows)\n"
        "merger.write(folder, torch.bfloat16)\n"
        "merger.merged_predictions(folder, rows, torch.float32)\n"
        "print(json.dumps(peak() - before))\n"
    )
    (tmp_path / "merged").mkdir()
    command = [sys.executable, "-c", merging, str(tmp_path / "base"), str(adapter), str(tmp_path / "merged")]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    grown = json.loads(told.splitlines()[-1])
    assert grown < 2 * max(shards) + 2**29  # the merge in memory takes 1.07e9
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) == len(shards)
