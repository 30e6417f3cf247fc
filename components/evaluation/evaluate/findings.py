"""Notes and problems of an evaluation, for its log, page and report."""

from dataclasses import dataclass, field


@dataclass
class Findings:
    """Notes and problems of an evaluation.

    Attributes:
        notes: Harmless deviations from the settings.
        problems: Requested measurements that failed; any of them closes the gate.
    """

    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add_note(self, text: str) -> None:
        """Records a note and prints it."""
        self.notes.append(text)
        print(f"note: {text}", flush=True)

    def add_problem(self, text: str) -> None:
        """Records a problem and prints it."""
        self.problems.append(text)
        print(f"warning: {text}", flush=True)
