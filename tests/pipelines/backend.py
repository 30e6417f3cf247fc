"""A Kubeflow Pipelines backend as a card meets it: its recorded inputs, and what its metadata store does."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kfp.dsl.executor import Executor

from llm_finetune.components.shared.card import PACKAGE_VERSION

RECORDED = Path(__file__).parent / "recorded"
RUN = "llm-finetune"
SESSION = json.dumps({"Provider": "minio", "Params": {"endpoint": "store.example:9000", "secretName": "store-secret"}})


def recording(card: str) -> dict[str, Any]:
    return json.loads((RECORDED / f"{card}.json").read_text())


def as_stored(metadata: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns metadata as the store gives it back, or raises where the launcher fails and with it the card.

    Numbers are doubles, and a whole double is written without a point; at the top level there are no booleans, mappings
    and lists; null is "unknown/unsupported value type", and NaN no JSON.
    """
    kept = {key: _value(value, key) for key, value in metadata.items()}
    return dict(sorted((kept | {"display_name": name, "store_session_info": SESSION}).items()))


def _value(value: Any, key: str) -> Any:
    if value is None:
        raise ValueError(f"{key}: unknown/unsupported value type null")
    plain = json.loads(json.dumps(value, allow_nan=False), parse_float=_double)
    if isinstance(plain, bool):
        return int(plain)
    return {"struct": plain} if isinstance(plain, dict) else {"list": plain} if isinstance(plain, list) else plain


def _double(text: str) -> float | int:
    number = float(text)
    return int(number) if number.is_integer() else number


class Backend:
    """Runs faces as a backend does, with the artifacts under a folder of this machine.

    Attributes:
        written: Metadata of every artifact so far, as its card wrote it.
        stored: The same as the store gives it back.
    """

    def __init__(self, folder: Path, run: str = RUN) -> None:
        self.folder, self.name = folder, run
        self.written: dict[str, dict[str, Any]] = {}
        self.stored: dict[str, dict[str, Any]] = {}

    def given(self, card: str, **parameters: Any) -> dict[str, Any]:
        """Returns a recorded input with other parameters, and with the metadata that the cards before have written."""
        found = recording(card)
        values = found["inputs"]["parameterValues"]
        assert set(parameters) <= set(values), f"{card} was not given {set(parameters) - set(values)}"
        values.update(parameters)
        if "package_version" in values:
            values["package_version"] = PACKAGE_VERSION
        for name, artifacts in found["inputs"].get("artifacts", {}).items():
            artifacts["artifacts"][0]["metadata"] = copy.deepcopy(self.stored[name])
        text = json.dumps(found["outputs"]).replace(f"/{RUN}/", f"/{self.name}/")
        text = text.replace('"/minio/', f'"{self.folder}/minio/')
        found["outputs"] = json.loads(text.replace('"/tmp/', f'"{self.folder}/tmp/'))
        return found

    def run(self, card: str, face: Any, without: Sequence[str] = (), **parameters: Any) -> dict[str, Any]:
        """Runs a card to its end, without some of its input artifacts; returns its output parameters."""
        given = self.given(card, **parameters)
        for name in without:
            del given["inputs"]["artifacts"][name]
        Executor(executor_input=given, function_to_execute=face).execute()
        output = json.loads(Path(given["outputs"]["outputFile"]).read_text(), parse_constant=_no_json)
        for name, artifacts in output["artifacts"].items():
            self.written[name] = artifacts["artifacts"][0]["metadata"]
            self.stored[name] = as_stored(self.written[name], name)
        return output.get("parameterValues", {})

    def path(self, card: str, name: str) -> Path:
        """Returns where an output lies."""
        return self.folder / "minio/mlpipeline/v2/artifacts" / self.name / card / name


def _no_json(constant: str) -> None:
    raise ValueError(f"the launcher reads no {constant}")
