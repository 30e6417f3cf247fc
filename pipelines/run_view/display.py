"""Shows the progress of a run in the terminal."""

from collections.abc import Mapping
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llm_finetune.components.shared.progress import format_duration
from llm_finetune.pipelines.run_view.cards import CardRun, Event

MARKS = {
    "waiting": ("·", "dim"),
    "running": ("▶", "cyan"),
    "done": ("✓", "green"),
    "cached": ("=", "green"),
    "failed": ("✗", "red"),
}


class Cards(Protocol):
    """The cards of a run, local or on a cluster."""

    @property
    def cards(self) -> Mapping[str, CardRun]:
        """All cards by task name."""

    @property
    def running(self) -> CardRun | None:
        """The running card, or None."""


class Display:
    """Shows one line per card: live in a terminal, else a line at the end of each card and every 15 seconds."""

    def __init__(self, console: Console, state: Cards) -> None:
        """Stores console and run."""
        self.console, self.state = console, state
        self.live = (
            Live(get_renderable=self._table, console=console, refresh_per_second=4) if console.is_terminal else None
        )
        self.printed = 0.0

    def __enter__(self) -> "Display":
        """Starts the live display."""
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stops the live display; its last state stays visible."""
        if self.live:
            self.live.stop()

    def update(self, event: Event | None) -> None:
        """Prints changes if there is no live display."""
        if self.live:
            return
        if event and event.kind != "started":
            self.console.print(self._line(self.state.cards[event.task]))
        card = self.state.running
        if card and card.progress and card.elapsed - self.printed >= 15:
            self.printed = card.elapsed
            self.console.print(self._line(card))
        if event:
            self.printed = 0.0

    def _line(self, card: CardRun) -> Text:
        mark, style = MARKS[card.state]
        time = "cached" if card.state == "cached" else "" if card.state == "waiting" else format_duration(card.elapsed)
        text = Text.assemble((f"{mark} ", style), f"{card.title:<18}", (f"{time:>8}", "bold"))
        if card.state == "running" and card.progress:
            text.append(
                f"  {card.progress.label} {card.progress.done}/{card.progress.total} {card.progress.detail}", "dim"
            )
        return text

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for card in self.state.cards.values():
            mark, style = MARKS[card.state]
            time = (
                "cached" if card.state == "cached" else "" if card.state == "waiting" else format_duration(card.elapsed)
            )
            bar: ProgressBar | str = ""
            detail = ""
            if card.state == "running" and card.progress:
                bar = ProgressBar(total=card.progress.total, completed=card.progress.done, width=24)
                detail = f"{card.progress.label} {card.progress.done}/{card.progress.total} {card.progress.detail}"
            title = Text(card.title, "dim" if card.state == "waiting" else "")
            table.add_row(
                Text(mark, style),
                title,
                Text(time, justify="right"),
                bar,
                Text(detail, "dim", overflow="ellipsis", no_wrap=True),
            )
        return table
