"""Adapters that vLLM can't serve on a shared base are refused before anything is rolled out."""

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
    with pytest.raises(UserError, match=f"on a shared base, for {reason}: serve the merged model"):
        adapters.of(tmp_path, "s3://bucket/model")
    file.write_text(json.dumps(PLAIN))
    assert adapters.of(tmp_path, "s3://bucket/model").rank == 512
