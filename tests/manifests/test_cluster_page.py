"""docs/cluster.md: every command, path, option and message in it is one that exists."""

import re

import pytest
import typer
import yaml
from manifests.kustomize import FITTING, MANIFESTS, ROOT

from llm_finetune.pipelines.cli import app
from llm_finetune.pipelines.options import read_options
from llm_finetune.pipelines.submit import connection

TEXT = (ROOT / "docs/cluster.md").read_text()


def test_options_of_our_command_exist() -> None:
    command = typer.main.get_command(app)
    joined = TEXT.replace("\\\n", " ")
    used = [line for line in re.findall(r"llm-finetune (?:compile|submit)[^`\n]*", joined)]
    assert len(used) >= 5
    for line in used:
        known = {
            flag
            for option in command.commands[line.split()[1]].params
            for flag in (*option.opts, *option.secondary_opts)
        }
        assert set(re.findall(r"(?<!\S)--[a-z-]+", line)) <= known, line
    submit = {flag for option in command.commands["submit"].params for flag in (*option.opts, *option.secondary_opts)}
    bare = set(re.findall(r"`(--[a-z-]+)", TEXT)) - {"--audience"}
    assert bare <= submit | {"--output", "--format"}


def test_login_is_as_the_client_reads_it() -> None:
    assert f"export {connection.COOKIE}=" in TEXT and f"--audience={connection.AUDIENCE}" in TEXT


def test_compile_options_in_it_are_taken() -> None:
    for assignment in re.findall(r"--option (?:'([^']+)'|([\w=-]+))", TEXT):
        assert read_options(None, ["".join(assignment)])


def test_paths_exist() -> None:
    paths = set(re.findall(r"(?<![/\w])manifests/[\w./-]+[\w]", TEXT))
    assert len(paths) > 8
    for path in paths:
        assert (ROOT / path).exists(), path
    for path in re.findall(r"kubectl (?:apply -k|kustomize) ([\w/-]+)", TEXT):
        assert (ROOT / path / "kustomization.yaml").is_file(), path


def test_every_overlay_and_component_is_explained() -> None:
    overlays = {folder.name for folder in (MANIFESTS / "overlays").iterdir()}
    components = {folder.name for folder in (MANIFESTS / "components").iterdir()}
    assert overlays == set(FITTING)
    rows = "\n".join(line.split("|")[1] for line in TEXT.splitlines() if line.startswith("| `"))
    assert {name for name in overlays | components if f"`{name}`" not in rows} == set()


def test_roles_in_it_are_those_that_are_made() -> None:
    files = [*MANIFESTS.glob("base/role-*.yaml"), *MANIFESTS.glob("components/*/*role.yaml")]
    objects = [manifest for file in files for manifest in yaml.safe_load_all(file.read_text())]
    made = {manifest["metadata"]["name"] for manifest in objects if manifest["kind"] in ("Role", "ClusterRole")}
    assert made == set(re.findall(r"^\| `(llm-finetune-[\w-]+)` \|", TEXT, flags=re.MULTILINE))


def test_messages_are_those_that_the_code_gives() -> None:
    source = "".join(
        file.read_text() for folder in ("components", "pipelines") for file in (ROOT / folder).rglob("*.py")
    )
    # Texts over several lines are one text.
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    table = TEXT.split("| message | what to do |")[1]
    messages = [cell for line in table.splitlines() if line.startswith("| `") for cell in [line.split(" | ")[0]]]
    assert len(messages) > 15
    for message in messages:
        for fragment in re.findall(r"`([^`]+)`", message):
            assert fragment in source, fragment


def test_cards_that_take_the_base_model_are_counted_right() -> None:
    spec = next(yaml.load_all((ROOT / "pipelines/compiled/finetune.yaml").read_text(), yaml.CSafeLoader))
    dags = [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]
    taking = {
        name
        for dag in dags
        for name, task in dag["tasks"].items()
        if "model_config" in task.get("inputs", {}).get("artifacts", {})
    }
    assert f"down into {len(taking)} cards" in TEXT
    # Up, down into each; the merged model up and twice down: all of them 16 GB.
    assert f"{16 * (1 + len(taking) + 3)} GB" in TEXT and f"{16 * 3} GB" in TEXT


@pytest.mark.manifests
def test_sizing_table_is_the_estimator_s() -> None:
    from manifests.sizing import written  # brings torch

    assert written(TEXT) == TEXT, "run: PYTHONPATH=tests python -m manifests.sizing"


def test_commands_use_variables_that_stand_near() -> None:
    """What a block of commands uses is set in it, or in the block before."""
    before: set[str] = set()
    for block in re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL):
        here = set(re.findall(r"(?<![\w$])([A-Z]+)=", block))
        used = set(re.findall(r"\$\{?([A-Z]+)\b", block))
        assert used <= here | before, block
        before = here | (before & used)
