"""Progress of a long card as lines of its log, which a terminal can turn into a bar."""

import re
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgressLine:
    """What one progress line of a card's log says.

    Attributes:
        label: What is being done, such as `train`.
        done: Units finished.
        total: Units in all.
        detail: The rest of the line: unit, rate, time left, latest figures.
    """

    label: str
    done: int
    total: int
    detail: str


class Progress:
    """Prints progress at most every few seconds, with rate and time left.

    Example line: `progress: train 120/312 steps, 1.64 steps/s, 1:57 left, loss 0.1834`.
    """

    def __init__(self, label: str, total: int, unit: str = "steps", every_seconds: float = 2.0) -> None:
        """Starts the clock.

        Args:
            label: What is being done.
            total: Units in all.
            unit: Name of the unit, plural.
            every_seconds: Least time between two lines; the first and the last are always printed.
        """
        self.label, self.total, self.unit, self.every_seconds = label, total, unit, every_seconds
        self.started = time.monotonic()
        self.first_done: int | None = None
        self.last_printed = float("-inf")

    def update(self, done: int, detail: str = "") -> None:
        """Prints a line if one is due.

        Args:
            done: Units finished so far, resumed ones included; the rate counts only those since the first call.
            detail: Latest figures to append.
        """
        now = time.monotonic()
        if self.first_done is None:
            self.first_done = done
        if done < self.total and now - self.last_printed < self.every_seconds:
            return
        self.last_printed = now
        rate = (done - self.first_done) / max(now - self.started, 1e-9)
        parts = [f"progress: {self.label} {done}/{self.total} {self.unit}"]
        if rate > 0:
            parts.append(f"{rate:.3g} {self.unit}/s")
            parts.append(f"{clock((self.total - done) / rate)} left")
        if detail:
            parts.append(detail)
        print(", ".join(parts), flush=True)


def parse(line: str) -> ProgressLine | None:
    """Reads a line of a card's log.

    Args:
        line: Any line.

    Returns:
        The progress it reports, or None if it is something else.
    """
    match = re.match(r"\s*progress: (.+?) (\d+)/(\d+) (.*)$", line)
    return ProgressLine(match[1], int(match[2]), int(match[3]), match[4].strip()) if match else None


def clock(seconds: float) -> str:
    """Returns a duration as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
