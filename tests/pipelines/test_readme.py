import shutil

from llm_finetune.pipelines.compile import COMPILED
from llm_finetune.pipelines.readme import README, update


def test_the_generated_parts_of_the_readme_are_those_of_the_pipeline(tmp_path):
    shutil.copy(README, tmp_path / "README.md")
    assert not update(tmp_path / "README.md", COMPILED), "run `make compile`"
    text = README.read_text()
    table = text.split("<!-- parameters -->")[1].split("<!-- /parameters -->")[0].strip().splitlines()
    assert all(line.startswith("| ") and line.endswith(" |") for line in table if line != "|---|---|---|---|")
    assert "quality_gate -- open --> merge_export" in text
    assert "| `num_epochs` | int | `3` |" in text
