"""State of a local run: times, logs and outputs of its cards."""

import json
import time
from pathlib import Path
from typing import Any

from llm_finetune.components.shared.card_logs import last_error
from llm_finetune.components.shared.progress import parse_progress
from llm_finetune.pipelines.local.events import read_event
from llm_finetune.pipelines.run_view.cards import CardRun, Event, read_cards

EXECUTOR_OUTPUT = "executor_output.json"  # written by KFP's local runner next to the outputs


class RunState:
    """State of a run, updated with each line of the runner's output."""

    def __init__(self, pipeline: Path, folder: Path, cache_root: Path) -> None:
        """Reads the cards of the pipeline.

        Args:
            pipeline: Compiled YAML.
            folder: Folder of the run, with logs in `logs/` and artifacts in `artifacts/`.
            cache_root: Folder of KFP's cache entries.
        """
        self.folder, self.cache_root = folder, cache_root
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        self.cards = {
            task: CardRun(task, card.title, folder / "logs" / f"{i:02}-{task}.log", page_types=card.pages)
            for i, (task, card) in enumerate(read_cards(pipeline).items())
        }
        self.running: CardRun | None = None
        self.runner_log = folder / "logs" / "runner.log"

    @property
    def failed(self) -> CardRun | None:
        """The failed card, or None."""
        return next((card for card in self.cards.values() if card.state == "failed"), None)

    def read(self, line: str) -> Event | None:
        """Processes one line of the runner's output; lines of a card are appended to its log.

        Returns:
            The event in the line, or None.
        """
        event = read_event(line)
        if event and event.task in self.cards:
            self._apply(event)
            return event
        log = self.running.log if self.running else self.runner_log
        with log.open("a", encoding="utf-8") as stream:
            stream.write(line.removeprefix("    ") if self.running else line)
        if self.running and (progress := parse_progress(line)):
            self.running.progress = progress
        return None

    def _apply(self, event: Event) -> None:
        card = self.cards[event.task]
        if event.kind == "started":
            card.state, card.started, self.running = "running", time.monotonic(), card
            return
        card.seconds = time.monotonic() - card.started if card.started else 0.0
        self.running = None
        if event.kind == "cached":
            card.state = "cached"
            card.outputs = self._cached_outputs(event.cache_key)
        else:
            card.state = "done" if event.kind == "succeeded" else "failed"
            card.outputs = self._written_outputs(card.task)

    def _cached_outputs(self, key: str) -> dict[str, Path]:
        entry = next(self.cache_root.glob(f"{key}*.json"))
        outputs = json.loads(entry.read_text())
        return {name: Path(o["uri"]) for name, o in outputs.items() if isinstance(o, dict) and "uri" in o}

    def _written_outputs(self, task: str) -> dict[str, Path]:
        folder = next((self.folder / "artifacts").glob(f"*/{task}"), None)
        return {path.name: path for path in folder.iterdir()} if folder else {}

    def output(self, task: str, name: str) -> Path | None:
        """Returns an output of a finished card, or None if it does not exist."""
        card = self.cards.get(task)
        path = card.outputs.get(name) if card else None
        return path if path and path.exists() else None

    def metadata(self, task: str, name: str) -> dict[str, Any]:
        """Returns the metadata of an output; empty if the card was cached or did not run."""
        written = self.output(task, EXECUTOR_OUTPUT)
        outputs = json.loads(written.read_text(encoding="utf-8")).get("artifacts", {}) if written else {}
        found: list[dict[str, Any]] = outputs.get(name, {}).get("artifacts", [])
        return dict(found[0].get("metadata", {})) if found else {}


def error_of(log: Path) -> str:
    """Returns the last error in a log file."""
    return last_error(log.read_text(encoding="utf-8") if log.exists() else "")
