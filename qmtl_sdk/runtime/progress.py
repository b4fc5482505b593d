"""Show the progress of a submission on stderr: the local computation, then the steps of the workflow."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from qmtl_sdk.contracts.submission import Heartbeat


class ProgressDisplay:
    """Shows one updating line in a terminal or notebook; `print_line` prints everywhere."""

    def __init__(self, name: str, shown: bool | None) -> None:
        self._console = Console(stderr=True)
        animated = shown if shown is not None else self._console.is_terminal or self._console.is_jupyter
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=self._console, transient=True, disable=not animated)
        self._name = name
        self._task = self._progress.add_task(name, total=None)

    def show_progress(self, heartbeat: Heartbeat) -> None:
        completed = heartbeat.nodes_done + (heartbeat.bar / heartbeat.bars if heartbeat.bars else 0)
        self._progress.update(
            self._task,
            description=f"{self._name}: computing {heartbeat.node}",
            total=max(heartbeat.nodes, 1),
            completed=completed,
        )

    def show_step(self, text: str) -> None:
        self._progress.update(self._task, description=f"{self._name}: {text}")

    def print_line(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> "ProgressDisplay":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
