import shutil

from llm_finetune.pipelines.compile import COMPILED
from llm_finetune.pipelines.readme import README, update


def test_the_drawn_parts_of_the_readme_are_those_of_the_pipeline(tmp_path):
    shutil.copy(README, tmp_path / "README.md")
    assert not update(tmp_path / "README.md", COMPILED), "run `make compile`"
    text = README.read_text()
    assert "quality_gate -- open --> merge_export" in text
    assert "| `num_epochs` | integer | `3` |" in text
