"""An adapter's base: the commit that it was trained on; and adapters that no base can share are refused at once."""

import json
from pathlib import Path

import pytest

from llm_finetune.components.serving.vllm_serve import adapters
from llm_finetune.components.shared.errors import UserError

PLAIN = {"r": 512, "base_model_name_or_path": "owner/base", "init_lora_weights": True}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"use_dora": True}, "it is a DoRA adapter"),
        ({"modules_to_save": ["lm_head", "norm"]}, "it trains lm_head, norm in full"),
        ({"init_lora_weights": "pissa_niter_4"}, r"its initial values \(pissa_niter_4\) change the base"),
        ({"init_lora_weights": "olora"}, r"its initial values \(olora\) change the base"),
        ({"r": 768}, "its rank 768 is above 512"),
    ],
)
def test_it_says_why(tmp_path: Path, config: dict, reason: str) -> None:
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(PLAIN | config))
    with pytest.raises(UserError, match=f"on a shared base: {reason}. Serve the merged model"):
        adapters.find_adapter(tmp_path, "s3://bucket/model")
    file.write_text(json.dumps(PLAIN))
    assert adapters.find_adapter(tmp_path, "s3://bucket/model").rank == 512


COMMIT, OTHER = "a" * 40, "b" * 40
TRAINED_ON = {"base_model": "owner/base", "base_revision": COMMIT}


@pytest.mark.parametrize(
    ("named", "revision", "chosen", "origin", "base"),
    [
        ("owner/base", COMMIT, "", {}, f"hf://owner/base:{COMMIT}"),
        ("owner/base", None, "", TRAINED_ON, f"hf://owner/base:{COMMIT}"),
        ("owner/base", OTHER, "", TRAINED_ON, f"hf://owner/base:{OTHER}"),
        ("/cache/snapshots/a", None, "owner/base", TRAINED_ON, f"hf://owner/base:{COMMIT}"),
        ("owner/base", COMMIT, "hf://owner/base", {}, f"hf://owner/base:{COMMIT}"),
        ("owner/base", COMMIT, "hf://owner/base:v1", TRAINED_ON, "hf://owner/base:v1"),
        ("owner/base", COMMIT, "mirror/base", TRAINED_ON, "hf://mirror/base"),
        ("owner/base", COMMIT, "gs://bucket/base", TRAINED_ON, "gs://bucket/base"),
        ("/mnt/base", "sha256:1", "", {"base_model": "/mnt/base", "base_revision": "sha256:1"}, "/mnt/base"),
        ("owner/base", None, "", {}, "hf://owner/base"),
    ],
)
def test_a_base_on_the_hub_is_the_commit_that_the_adapter_was_trained_on(
    tmp_path: Path, named: str, revision: str | None, chosen: str, origin: dict, base: str
) -> None:
    config = PLAIN | {"base_model_name_or_path": named, "revision": revision}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert adapters.find_adapter(tmp_path, "s3://bucket/model", chosen, origin).base == base
