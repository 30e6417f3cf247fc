"""Bills of materials and what is known against them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from images import inventory, lock


def test_bill_names_every_locked_package_with_its_hash(tmp_path: Path) -> None:
    bill = json.loads(inventory.write_bill("control", tmp_path).read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert {part["name"]: part["version"] for part in bill["components"]} == lock.read(
        Path("images/control/requirements.txt")
    )
    assert all(part["externalReferences"][0]["hashes"] for part in bill["components"])
    assert bill["metadata"]["component"]["name"] == "llm-finetune"


REPORT = {
    "dependencies": [
        {"name": "jinja2", "version": "3.1.0", "vulns": [{"id": "CVE-1", "fix_versions": ["3.1.6"], "aliases": []}]},
        {"name": "six", "version": "1.17.0", "vulns": []},
        {"name": "certifi", "skip_reason": "Dependency not found on PyPI and could not be audited"},
    ]
}


def test_package_that_could_not_be_looked_up_is_not_called_clean() -> None:
    found = inventory.findings(REPORT)
    assert (found.checked, found.unchecked) == (2, 1)
    assert found.advisories == ["jinja2 3.1.0: CVE-1, fixed in 3.1.6"]


@pytest.mark.parametrize(("options", "code"), [([], 0), (["--strict"], 1)])
def test_audit_reports(monkeypatch: pytest.MonkeyPatch, options: list[str], code: int) -> None:
    monkeypatch.setattr(inventory, "look_up", lambda image: inventory.findings(REPORT))
    result = CliRunner().invoke(inventory.app, ["audit", *options])
    assert result.exit_code == code
    assert "control: 2 packages checked, 1 unknown to the service, 1 advisories" in result.output


@pytest.mark.parametrize("found", [None, inventory.Findings(0, 3, [])])
def test_audit_without_a_network_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, found: inventory.Findings | None
) -> None:
    monkeypatch.setattr(inventory, "look_up", lambda image: found)
    result = CliRunner().invoke(inventory.app, ["audit", "--strict"])
    assert result.exit_code == 0
    assert result.output.count("not checked, the advisory service cannot be reached") == len(inventory.IMAGES)
