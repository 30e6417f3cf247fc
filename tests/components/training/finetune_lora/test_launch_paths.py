"""What is fast differs by device; the loss does not: every path that this machine can take, on the same rows."""

from dataclasses import replace

import pytest
from test_many_gpus import World
from transformers import AutoConfig

from llm_finetune.components.training.finetune_lora import build


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("paths"))


PATHS = {
    "labelled positions alone, like lengths together": {},
    "another attention": {"attention": "sdpa"},
    "TRL's head": {"labelled_only": False},
    "rows in random order": {"group_by_length": False},
    "rows flattened": {"labelled_only": False, "padding_free": True, "attention": "sdpa"},
}


def test_every_path_has_the_same_loss(world, monkeypatch, capsys):
    plan_device, losses = build.plan_device, {}
    for name, changed in PATHS.items():
        monkeypatch.setattr(
            build, "plan_device", lambda *a, _changed=changed, **k: replace(plan_device(*a, **k), **_changed)
        )
        # All rows in one step, so that their order does not matter.
        world.train(name, batch_size=21, num_epochs=2, evaluate_first=False)
        losses[name] = world.losses(name)
    expected = losses[next(iter(PATHS))]
    assert len(set(expected)) == 4  # two steps and two validations
    for name, found in losses.items():
        assert found == pytest.approx(expected, rel=1e-5), name
    shown = capsys.readouterr().out
    assert "rows grouped by length, which avoids most of the padding" in shown
    assert "loss on labelled positions alone" in shown


@pytest.mark.parametrize(
    ("packed", "plain_head", "processes", "reason"),
    [
        (False, True, "1", "loss on labelled positions alone"),
        (True, True, "1", "loss on TRL's head, because rows are flattened"),
        (False, False, "1", "loss on TRL's head, because the head caps or scales the logits"),
        (False, True, "2", "loss on TRL's head, because the gradients of several processes are reduced"),
    ],
)
def test_the_log_says_why(world, monkeypatch, packed, plain_head, processes, reason):
    monkeypatch.setenv("WORLD_SIZE", processes)
    config = AutoConfig.from_pretrained(world.inputs["model_config"])
    if not plain_head:
        config.final_logit_softcapping = 30.0
    plan = build.plan_device(config, packed, "float32")
    assert any(line.startswith(reason) for line in plan.reasons)
    assert plan.labelled_only == (reason == "loss on labelled positions alone")
