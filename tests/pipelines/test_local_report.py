"""What a local run has to show is read from what its cards recorded, by running cards with KFP's local runner."""

import io
import json

import pytest
from kfp import compiler, dsl
from rich.console import Console

from llm_finetune.components.evaluation.quality_gate.component import quality_gate
from llm_finetune.components.shared.card_logs import read_outcome
from llm_finetune.pipelines.local.report import closed_gate
from llm_finetune.pipelines.local.runner import LocalRun, run_pipeline
from llm_finetune.pipelines.local.state import error_of


@dsl.pipeline(name="gate")
def gate(eval_report: str, rules: str):
    given = dsl.importer(artifact_uri=eval_report, artifact_class=dsl.Metrics)
    quality_gate(eval_report=given.output, rules=rules)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gate")
    (folder / "eval.json").write_text(json.dumps({"metrics": {"loss_delta": 0.5}}))
    compiler.Compiler().compile(gate, str(folder / "gate.yaml"))

    def run(name: str, rules: str) -> LocalRun:
        (folder / name).mkdir()
        given = {"eval_report": str(folder / "eval.json"), "rules": rules}
        return run_pipeline(
            folder / "gate.yaml", given, folder / name, folder / "cache", False, Console(file=io.StringIO())
        )

    return run


def test_a_verdict_is_what_the_gate_recorded_and_not_its_page(judged):
    run = judged("closed", "loss_delta < 0")
    reason = "not deployed, because loss_delta < 0 does not hold: loss_delta = 0.5"
    run.state.output("quality-gate", "gate_report").write_text("# A page\n\nin other words")
    assert closed_gate(run.state) == reason
    said = read_outcome(run.state.cards["quality-gate"].log.read_text(), "quality_gate")
    assert said == {"by": "quality_gate", "open": False, "reason": reason}


def test_an_open_gate_and_one_that_was_not_reached_are_not_closed(judged):
    run = judged("open", "loss_delta < 1")
    assert run.succeeded and closed_gate(run.state) == ""
    failed = judged("failed", "no_such_figure < 1")
    assert not failed.succeeded and closed_gate(failed.state) == ""
    assert "the gate's rule 'no_such_figure < 1' names 'no_such_figure', which" in error_of(failed.state.failed.log)
