"""Bars in a notebook are one output of a cell, drawn anew as they change.

Rich would need ipywidgets for that, and in their place writes a terminal's control codes.
"""

from collections.abc import Callable
from importlib import import_module
from io import StringIO
from time import monotonic
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import Progress, ProgressColumn, TaskID

_APART = 0.1  # seconds between two drawings
_PRE = '<pre style="white-space: pre; overflow-x: auto; line-height: normal">{code}</pre>'


class NotebookProgress(Progress):
    """Progress in the output of the cell that runs; an update draws it, and no thread does."""

    def __init__(self, *columns: str | ProgressColumn, console: Console, disable: bool) -> None:
        super().__init__(*columns, console=console, disable=disable, auto_refresh=False)
        self.live = _CellOutput(console, self.get_renderable)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change a row, and draw it."""
        super().update(task_id, **changes)
        self.refresh()


class _CellOutput(Live):
    """What is live, as an output that is replaced; a transient one ends empty."""

    def __init__(self, console: Console, get_renderable: Callable[[], RenderableType]) -> None:
        super().__init__(console=console, auto_refresh=False, get_renderable=get_renderable)
        self._output: Any = None
        self._drawn = -_APART

    def start(self, refresh: bool = True) -> None:
        if not self._started:
            self._started = True
            if refresh:
                self._draw()

    def stop(self) -> None:
        if self._started:
            self._started = False
            self._draw()

    def refresh(self) -> None:
        if monotonic() - self._drawn >= _APART:
            self._draw()

    def _draw(self) -> None:
        with self._lock:
            empty = self.transient and not self._started
            bundle = {"text/plain": ""} if empty else _bundle(self.get_renderable(), self.console)
            if self._output is None:
                display = import_module("IPython.display").display
                self._output = display(bundle, raw=True, display_id=True)
            else:
                self._output.update(bundle, raw=True)
            self._drawn = monotonic()


def _bundle(renderable: RenderableType, console: Console) -> dict[str, str]:
    """Return what is shown, as a page and as text."""
    drawn = Console(
        file=StringIO(),
        width=console.width,
        record=True,
        force_jupyter=False,
        force_terminal=True,
        color_system="truecolor",
        markup=False,
        emoji=False,
        highlight=False,
    )
    drawn.print(renderable)
    html = drawn.export_html(code_format=_PRE, inline_styles=True, clear=False)
    return {"text/plain": drawn.export_text(), "text/html": html}
