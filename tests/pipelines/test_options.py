"""Compile options: how they are given, what is refused, where they are described, and what `compile` writes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from llm_finetune.components.shared.errors import UserError
from llm_finetune.pipelines.cli import app
from llm_finetune.pipelines.cluster import DATA
from llm_finetune.pipelines.options import ClusterOptions, read_options

DOCS = Path(__file__).parents[2] / "docs"


def test_options_come_from_a_file_and_the_command_line_wins(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text("spot: true\nmodel_cache: true\nsizes: {train: {memory: 96Gi}}\n")
    options = read_options(file, ["spot=false", "image_pull_secrets=[registry]"])
    assert (options.spot, options.model_cache, options.image_pull_secrets) == (False, True, ("registry",))
    assert (options.size("train").memory, options.size("train").cpu) == ("96Gi", "8")


@pytest.mark.parametrize(
    ("file", "assignments", "message"),
    [
        ("", ["model_cash=true"], "unknown setting 'option.model_cash'; did you mean 'model_cache'?"),
        ("", ["spot"], "--option 'spot' does not have the form name=value"),
        ("", ["sizes={huge: {}}"], "option.sizes.huge"),
        ("", ["sizes={train: {memory: 96GB}}"], "sizes.train.memory = '96GB'"),
        ("", ["sizes={train: {cpu: '32'}}"], "cpu_limit 16 is less than cpu 32"),
        ("", ["image_pull_policy=Sometimes"], "option.image_pull_policy = 'Sometimes'"),
        ("", ["environment={HF_ENDPOINT: 1}"], "environment.HF_ENDPOINT = 1"),
        ("", ["environment={HF-ENDPOINT: x}"], "environment.HF-ENDPOINT"),
        ("", ["environment={HF_TOKEN: hf_abc}"], "HF_TOKEN looks like a secret"),
        ("", ["environment={https_proxy: 'http://proxy:3128'}"], "a proxy needs NO_PROXY"),
        ("", ["data_claim=Rows"], "option.data_claim = 'Rows'"),
        ("- spot", [], "contains a list; expected a mapping"),
        ("spot: [", [], "while parsing"),
    ],
)
def test_an_impossible_option_is_refused(tmp_path, file, assignments, message):
    (tmp_path / "o.yaml").write_text(file)
    with pytest.raises(UserError) as error:
        read_options(tmp_path / "o.yaml", assignments)
    assert message in str(error.value)


def test_every_option_is_described_on_the_page_about_clusters():
    described = (DOCS / "cluster.md").read_text().split("| compile option | ")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", described, flags=re.MULTILINE)) == set(ClusterOptions.model_fields)
    assert f"`{DATA}`" in described


def test_a_folder_gets_every_pipeline_with_the_options_and_a_file_one(tmp_path):
    def compiled(*arguments):
        return CliRunner().invoke(app, ["compile", *map(str, arguments)], catch_exceptions=False).exit_code

    assert compiled("--output", tmp_path / "all", "--option", "image_pull_secrets=[registry-key]") == 0
    assert compiled("--output", tmp_path / "one.yaml") == 0
    assert {file.name for file in tmp_path.rglob("*.yaml")} == {"finetune.yaml", "sharded-data.yaml", "one.yaml"}
    for file in (tmp_path / "all").iterdir():
        _, platform = yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader)
        executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
        assert {e["imagePullSecret"][0]["secretName"] for e in executors} == {"registry-key"}, file.name


def test_a_terminal_that_knows_only_ascii_ends_nothing(tmp_path):
    command = [str(Path(sys.executable).parent / "llm-finetune"), "compile", "--output", "é.yaml"]
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=tmp_path, env=ascii_only, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"?.yaml" in done.stdout and (tmp_path / "é.yaml").is_file()
