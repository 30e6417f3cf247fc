"""What a deployed model is asked."""

import json
from pathlib import Path

import pytest
from cluster.behaviors import Behavior
from cluster.fake_api.model import Serving
from cluster.world import V1, World, fixture_make, fixture_world  # noqa: F401

from llm_finetune.components.serving.vllm_serve import questions, smoke
from llm_finetune.components.serving.vllm_serve.settings import Settings
from llm_finetune.components.shared.questions import Question, from_report

ROWS = [
    Question([{"role": "user", "content": "How many singers are there?"}], "SELECT count(*) FROM singer"),
    Question(
        [{"role": "user", "content": "Which is the oldest?"}], "SELECT name FROM singer ORDER BY age DESC LIMIT 1"
    ),
]


def test_validation_rows_are_asked_unless_the_user_has_questions() -> None:
    assert questions.choose(Settings(), ROWS) == questions.SmokePrompts(
        [row.messages for row in ROWS], "validation rows"
    )
    own = questions.choose(Settings(golden_prompts=["List the tables."]), ROWS)
    assert own == questions.SmokePrompts([[{"role": "user", "content": "List the tables."}]], "golden_prompts")


def test_a_general_question_says_that_it_is_one() -> None:
    asked = questions.choose(Settings(), [])
    assert asked.conversations == [[{"role": "user", "content": "Introduce yourself in one short sentence."}]]
    assert asked.origin == ("a general prompt (no validation rows were given); set golden_prompts for your own")
    long = Question([{"role": "user", "content": "word " * 400}], "x")
    assert questions.choose(Settings(), [long], context=1024).origin.startswith("a general prompt (the validation rows")
    assert questions.choose(Settings(), [long, ROWS[0]], context=1024).conversations == [ROWS[0].messages]
    assert questions.choose(Settings(), [long], context=2048).conversations == [long.messages]


def test_a_report_of_another_program_holds_no_questions(tmp_path: Path) -> None:
    report = tmp_path / "eval_report"
    assert from_report(report) == []
    report.write_text("[1]")
    assert from_report(report) == []
    report.write_text('{"metrics": {}}')
    assert from_report(report) == []
    report.write_text(json.dumps({"questions": [vars(row) for row in ROWS]}))
    assert from_report(report) == ROWS


def test_a_model_on_a_cluster_is_asked_the_rows_and_its_page_shows_them(world: World) -> None:
    world.kserve.behaviors[V1] = Behavior(serving=Serving(text="SELECT 1"))
    info = world.deploy(V1, rows=ROWS)
    assert [answer["prompt"] for answer in info["answers"]] == [row.messages[0]["content"] for row in ROWS]
    assert info["asked"] == "validation rows" and "How many singers are there?" in info["example_curl"]
    page = (world.folder / "page.md").read_text()
    assert page.count("How many singers are there?") == 2 and "France" not in page


@pytest.mark.parametrize(("reference", "refused"), [("short", True), ("a long story " * 20, False)])
def test_only_answers_that_are_short_in_the_data_must_end(world: World, reference: str, refused: bool) -> None:
    rows = [Question([{"role": "user", "content": "Tell me a story."}], reference)]
    world.kserve.behaviors[V1] = Behavior(serving=Serving(text="Once", finish="length"))
    if not refused:
        assert world.deploy(V1, rows=rows)["answers"][0]["finish_reason"] == "length"
        return
    with pytest.raises(smoke.UserError, match=r"none of the 1 answers of .* ended within"):
        world.deploy(V1, rows=rows)
