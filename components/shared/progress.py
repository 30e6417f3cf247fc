"""Progress lines in the log of a card, which the command line shows as a progress bar."""

import re
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgressLine:
    """A parsed progress line.

    Attributes:
        label: Activity, such as `train`.
        done: Finished units.
        total: Total units.
        detail: Rest of the line: unit, rate, time left, latest metrics.
    """

    label: str
    done: int
    total: int
    detail: str


class Progress:
    """Prints progress lines with rate and time left, at most one every few seconds.

    Example line: `progress: train 120/312 steps, 1.64 steps/s, 1:57 left, loss 0.1834`.
    """

    def __init__(self, label: str, total: int, unit: str = "steps", every_seconds: float = 2.0) -> None:
        """Starts the clock.

        Args:
            label: Activity.
            total: Total units.
            unit: Name of the unit, plural.
            every_seconds: Minimum seconds between two lines; the first and the last line are always printed.
        """
        self.label, self.total, self.unit, self.every_seconds = label, total, unit, every_seconds
        self.started = time.monotonic()
        self.first_done: int | None = None
        self.last_printed = float("-inf")

    def update(self, done: int, detail: str = "") -> None:
        """Prints a line if one is due.

        Args:
            done: Finished units, including those of a resumed run; the rate counts from the first call.
            detail: Latest metrics to append.
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
            parts.append(f"{format_duration((self.total - done) / rate)} left")
        if detail:
            parts.append(detail)
        print(", ".join(parts), flush=True)


def parse_progress(line: str) -> ProgressLine | None:
    """Parses a line of a card's log.

    Args:
        line: Any line.

    Returns:
        The progress, or None if the line is not a progress line.
    """
    match = re.match(r"\s*progress: (.+?) (\d+)/(\d+) (.*)$", line)
    return ProgressLine(match[1], int(match[2]), int(match[3]), match[4].strip()) if match else None


def format_duration(seconds: float) -> str:
    """Returns a duration as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
