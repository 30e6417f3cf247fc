"""Models that are not like Llama: attention of their own, capped logits, layers that carry a state."""

from dataclasses import replace

import datasets
import pytest
import torch
from peft import LoraConfig
from tiny import tiny_model
from tiny_architectures import configurations, tiny_architecture
from token_rows import documents
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, FalconConfig, JambaConfig, LlamaConfig

from llm_finetune.components.serving.merge_export.streaming import empty_model
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.attention import attention_implementation, packing_obstacle
from llm_finetune.components.shared.modeling.causal_lm import evaluation_mode, load_base
from llm_finetune.components.shared.modeling.losses import completion_nll, pad_rows
from llm_finetune.components.training.finetune_lora import build, device
from llm_finetune.components.training.finetune_lora.settings import Settings

FAMILIES = sorted(configurations())
CONFIGURATIONS = {**configurations(), "llama": LlamaConfig(), "falcon": FalconConfig(), "jamba": JambaConfig()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {"llama": tiny_model(root / "llama")} | {
        family: tiny_architecture(root / family, family) for family in FAMILIES
    }


@pytest.mark.parametrize(
    ("family", "attention", "varlen", "mixes"),
    [
        ("llama", "sdpa", "varlen", ""),
        ("gemma2", "eager", "eager", ""),
        ("lfm2", "sdpa", "varlen", "layers that are not attention"),
        ("jamba", "sdpa", "sdpa", "layers that are not attention"),
        ("falcon", "sdpa", "sdpa", "its own attention mask"),
        ("bloom", "eager", "eager", "its own attention mask"),
        ("gpt_neo", "eager", "eager", "its own attention mask"),
    ],
)
def test_what_an_attention_can_do_is_known_from_the_configuration(family, attention, varlen, mixes):
    config = CONFIGURATIONS[family]
    assert attention_implementation(config) == attention
    assert (attention_implementation(config, "varlen"), attention_implementation(config, "eager")) == (varlen, "eager")
    assert mixes in packing_obstacle(config) and bool(mixes) == bool(packing_obstacle(config))


@pytest.mark.parametrize("family", ["llama", "gemma2", "lfm2", "bloom"])
def test_documents_of_a_flattened_row_see_each_other_where_it_is_said(folders, family):
    model = load_base(folders[family], torch.float32, "eager")
    options = {} if family == "bloom" else {"position_ids": torch.tensor([[*range(5), *range(7)]])}
    found = []
    for neighbour in (4, 40):
        ids = torch.tensor([[*range(neighbour, neighbour + 5), *range(80, 87)]])
        with torch.no_grad():
            found.append(model(input_ids=ids, use_cache=False, **options).logits[0, 5:])
    assert torch.allclose(*found, atol=1e-6) == (not packing_obstacle(model.config))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_card_loads_a_model_with_an_attention_that_it_has(folders, family):
    """Losses are those of transformers' plain attention, row by row, while training and after."""
    rows = documents(6, seed=1)
    plain = AutoModelForCausalLM.from_pretrained(folders[family], dtype=torch.float32, attn_implementation="eager")
    model = load_base(folders[family], torch.float32)
    assert empty_model(folders[family], torch.float32).config._attn_implementation == attention_implementation(
        model.config
    )
    with evaluation_mode(model):
        found = completion_nll(model, pad_rows(rows))[0]
    with torch.no_grad():
        wanted = torch.cat([completion_nll(plain, pad_rows([row]))[0] for row in rows])
    assert torch.allclose(found, wanted, rtol=1e-4)


@pytest.mark.parametrize("family", ["lfm2", "bloom"])
def test_packed_rows_are_refused_where_documents_would_see_each_other(folders, family):
    config = AutoConfig.from_pretrained(folders[family])
    with pytest.raises(UserError, match=rf"contain several documents each, but {family} .* Set packing = false"):
        device.plan_device(config, True, "auto")
    assert not device.plan_device(config, False, "auto").padding_free


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("labelled_only", [True, False], ids=["own loss", "TRL's head"])
def test_padded_rows_are_trained_with_the_loss_that_each_has_alone(
    folders, family, labelled_only, tmp_path, monkeypatch
):
    rows = documents(7, seed=2)
    rows = datasets.Dataset.from_list([{**row, "length": len(row["input_ids"])} for row in rows])
    LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM").save_pretrained(tmp_path / "lora")
    plan_device = build.plan_device
    monkeypatch.setattr(
        build, "plan_device", lambda *a, **k: replace(plan_device(*a, **k), labelled_only=labelled_only)
    )
    trainer = build.build_trainer(
        folders[family], tmp_path / "lora", AutoConfig.from_pretrained(folders[family]), rows, rows,
        AutoTokenizer.from_pretrained(folders[family]), tmp_path / "out", Settings(dtype="float32"),
        packed=False, load_in_4bit=False,
    )  # fmt: skip
    batch = trainer.data_collator([{name: row[name] for name in ("input_ids", "labels")} for row in rows])
    plain = AutoModelForCausalLM.from_pretrained(folders[family], dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(1))
        wanted = sum(float(completion_nll(plain, pad_rows([row]))[0]) for row in rows)
    assert float(loss) == pytest.approx(wanted, rel=1e-4)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU in name only: what is planned for it can be seen, nothing can run on it."""

    def of(capability: tuple[int, int]) -> None:
        answers = {
            "is_available": lambda: True,
            "get_device_name": lambda: "GPU",
            "get_device_capability": lambda: capability,
            "is_bf16_supported": lambda including_emulation=True: including_emulation or capability >= (8, 0),
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, answer)

    return of


@pytest.mark.parametrize(
    ("family", "packed", "attention", "flattened", "reason"),
    [
        ("llama", True, "varlen", True, "rows flattened without padding"),
        ("llama", False, "varlen", True, "rows flattened without padding"),
        ("gemma2", True, "eager", True, "attention eager, because the model caps its attention logits"),
        ("gemma2", False, "eager", False, "padded rows, grouped by length, because eager attention"),
        ("lfm2", False, "sdpa", False, "padded rows, grouped by length, because lfm2 has layers that are not"),
        ("bloom", False, "eager", False, "attention eager, because bloom makes its own attention mask"),
        ("falcon", False, "sdpa", False, "attention sdpa, because falcon makes its own attention mask"),
    ],
)
def test_a_gpu_flattens_rows_only_where_documents_stay_apart(gpu, family, packed, attention, flattened, reason):
    gpu((9, 0))
    plan = device.plan_device(CONFIGURATIONS[family], packed, "auto")
    assert (plan.attention, plan.padding_free, plan.group_by_length) == (attention, flattened, not flattened)
    assert any(line.startswith(reason) for line in plan.reasons), plan.reasons


@pytest.mark.parametrize(
    ("asked", "capability", "dtype", "warned"),
    [
        ("auto", (9, 0), torch.bfloat16, False),
        ("bfloat16", (9, 0), torch.bfloat16, False),
        ("auto", (7, 5), torch.float32, False),
        ("bfloat16", (7, 5), torch.bfloat16, True),
        ("float32", (9, 0), torch.float32, False),
    ],
)
def test_bfloat16_is_not_emulated_unless_asked_for(gpu, asked, capability, dtype, warned):
    gpu(capability)
    plan = device.plan_device(CONFIGURATIONS["llama"], True, asked)
    assert (plan.base_dtype, plan.autocast) == (dtype, dtype is torch.bfloat16)
    assert ("emulates" in plan.reasons[0]) == warned


def test_damaged_weights_are_a_mistake_that_is_told(tmp_path):
    folder = tiny_model(tmp_path / "base")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"the base model in .* could not be loaded: "):
        load_base(folder, torch.float32)
