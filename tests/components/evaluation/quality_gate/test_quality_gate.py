import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kfp import dsl

from llm_finetune.components.evaluation.quality_gate import step
from llm_finetune.components.evaluation.quality_gate.component import quality_gate as card
from llm_finetune.components.evaluation.quality_gate.rules import parse_rules
from llm_finetune.components.shared.errors import UserError

METRICS = {"base_loss": 2.0, "tuned_loss": 0.5, "loss_delta": -1.5, "tuned_stop_rate": 0.98, "base_exact_match": 0.1,
           "tuned_exact_match": 0.1, "task.mmlu.drop": 0.015, "task.mmlu.stderr": 0.01, "judge_win_rate": float("nan"),
           "judge_wins": "many", "served_agreement": True}  # fmt: skip


def report(tmp_path, metrics=METRICS):
    file = tmp_path / "report.json"
    file.write_text(json.dumps({"metrics": metrics, "samples": []}))
    return file


@pytest.mark.parametrize(
    ("rules", "opened", "reason"),
    [
        ("loss_delta < 0", True, "all 1 rules hold"),
        ("", True, "no rules were set"),
        (" loss_delta<0 ,tuned_stop_rate >= 0.9,", True, "all 2 rules hold"),
        ("tuned_stop_rate >= 0.99", False, "not deployed, because tuned_stop_rate >= 0.99 does not hold: tuned_stop_rate = 0.98"),
        ("tuned_loss == 0.5", True, "all 1 rules hold"),
        ("tuned_exact_match > base_exact_match", False, "tuned_exact_match = 0.1, base_exact_match = 0.1"),
        ("tuned_exact_match >= base_exact_match", True, "all 1 rules hold"),
        ("tuned_field_f1 > 0.5", False, "tuned_field_f1 was not measured"),
        ("loss_delta < tuned_field_f1", False, "tuned_field_f1 was not measured"),
        ("loss_delta < -1e1", False, "loss_delta = -1.5"),
        ("stop_rate >= 0.9", True, "all 1 rules hold"),
        ("exact_match >= 2*base_exact_match", False, "tuned_exact_match = 0.1, base_exact_match = 0.1"),
        ("tuned_loss <= 0.25 * base_loss", True, "all 1 rules hold"),
        ("task.mmlu.drop <= 2*stderr", True, "all 1 rules hold"),
        ("task.mmlu.drop <= stderr", False, "task.mmlu.drop = 0.015, task.mmlu.stderr = 0.01"),
        ("task.mmlu.acc_norm.drop <= 2*stderr", False, "task.mmlu.acc_norm.drop was not measured"),
        ("task.arc_easy.drop <= 2*stderr", False, "task.arc_easy.drop was not measured"),
        ("judge_win_rate > 0.5", False, "judge_win_rate = nan is not a finite number"),
        ("judge_win_rate < 0.5", False, "judge_win_rate = nan is not a finite number"),
        ("judge_wins >= 0", False, "judge_wins = 'many' is not a finite number"),
        ("served_agreement >= 0", False, "served_agreement = True is not a finite number"),
    ],
)  # fmt: skip
def test_the_gate_opens_only_when_every_rule_holds(tmp_path, rules, opened, reason):
    result, said = step.quality_gate(report(tmp_path), tmp_path / "page.md", step.Settings(rules=rules))
    assert result is opened
    assert reason in said
    assert (tmp_path / "page.md").read_text().startswith(f"# Quality Gate: {'open' if opened else 'closed'}")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("loss_dleta < 0", "names 'loss_dleta', which no evaluation reports; did you mean 'loss_delta'?"),
        ("loss_delta < tuned_los", "did you mean 'tuned_loss'?"),
        ("loss_delta", "is not of the form 'metric < limit'"),
        ("loss_delta != 0", "is not of the form 'metric < limit'"),
        ("loss_delta < nan", "names 'nan', which no evaluation reports"),
        ("loss_delta < 1e999", "has a limit that is not a finite number: 1e999"),
        ("stop_rat >= 0.99", "did you mean 'stop_rate'?"),
        ("exact_match_delta_ci_lo > 0", "did you mean 'exact_match_delta_ci_low'?"),
        (
            "task.mmlu.dorp <= 2*stderr",
            "the metrics of a task are base, tuned, drop, stderr, such as task.mmlu.drop; did you mean 'drop'?",
        ),
        ("task.mmlu <= 0.1", "the metrics of a task are"),
        ("loss_delta <= 2*stderr", "names 'stderr'"),
        ("loss_delta <= 2**stderr", "is not of the form"),
    ],
)
def test_a_rule_that_cannot_be_read_is_named(rules, message):
    with pytest.raises(UserError) as error:
        step.Settings.of({"rules": rules})
    assert message in str(error.value)


def test_a_report_that_is_none_is_an_error_and_not_an_open_gate(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(UserError, match="is not a report of the Evaluate card"):
        step.quality_gate(tmp_path / "report.json", tmp_path / "page.md", step.Settings())


@pytest.mark.parametrize("content", ['{"metrics": 3}', '{"metrics": null}', "[]", '{"metrics": {}, "problems": 7}'])
def test_a_damaged_report_is_an_error_and_not_an_open_gate(tmp_path, content):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(UserError, match="is not a report of the Evaluate card"):
        step.quality_gate(tmp_path / "report.json", tmp_path / "page.md", step.Settings(rules=""))


def test_what_could_not_be_measured_closes_the_gate_without_a_rule(tmp_path):
    (tmp_path / "report.json").write_text(
        json.dumps({"metrics": METRICS, "problems": ["the judge gave no verdicts: |x|"]})
    )
    opened, reason = step.quality_gate(tmp_path / "report.json", tmp_path / "page.md", step.Settings())
    assert (opened, reason) == (False, "not deployed, because the judge gave no verdicts: |x|")
    page = (tmp_path / "page.md").read_text()
    assert "| `loss_delta < 0` | yes | loss\\_delta = -1.5 |" in page
    assert "## Not measured\n\n- the judge gave no verdicts: \\|x\\|" in page


@given(st.text(max_size=40))
def test_any_text_is_read_as_rules_or_refused_with_a_reason(text):
    try:
        rules = parse_rules(text)
    except UserError as error:
        assert "the gate's rule" in str(error)
    else:
        assert all(not verdict.passed for verdict in step.apply_rules(rules, {}))


def test_the_card_returns_one_plain_bool_and_says_why(tmp_path):
    page = dsl.Markdown(uri=str(tmp_path / "page.md"))
    opened = card.python_func(
        eval_report=dsl.Metrics(uri=str(report(tmp_path)), metadata={"content_hash": ""}),
        gate_report=page,
        rules="loss_delta < -2",
    )
    assert opened is False
    assert page.metadata["open"] is False
    assert page.metadata["reason"] == "not deployed, because loss_delta < -2 does not hold: loss_delta = -1.5"
