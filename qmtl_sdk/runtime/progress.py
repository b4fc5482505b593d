"""What a person sees while a submission runs: the local computation, then the workflow's own words. On stderr, so that stdout stays a program's."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from qmtl_sdk.contracts.submission import Heartbeat


class ProgressDisplay:
    """One line that moves in a terminal or notebook, nothing elsewhere; `say` always speaks."""

    def __init__(self, name: str, shown: bool | None) -> None:
        self._console = Console(stderr=True)
        moving = shown if shown is not None else self._console.is_terminal or self._console.is_jupyter
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=self._console, transient=True, disable=not moving)
        self._name = name
        self._task = self._progress.add_task(name, total=None)

    def computing(self, beat: Heartbeat) -> None:
        whole = beat.nodes_done + (beat.bar / beat.bars if beat.bars else 0)
        self._progress.update(
            self._task,
            description=f"{self._name}: computing {beat.node}",
            total=max(beat.nodes, 1),
            completed=whole,
        )

    def step(self, text: str) -> None:
        self._progress.update(self._task, description=f"{self._name}: {text}")

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> "ProgressDisplay":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
