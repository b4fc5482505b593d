"""Computes a DAG of nodes over history: bar by bar as live would, or at once where that is shown to be the same.

1. A node computes when a bar of its own interval closes (`_clock`) and sees of each input the last `period` bars that had closed by then (`_Plan`).
2. It is asked first when every input has `period` values that are not warm-up themselves; before that its output is missing.
3. `_bar_by_bar` calls the function once a bar. `_batch` calls it once for the whole history.
4. `check` decides whether the batch result may stand for the bar-by-bar one. It asks about short stretches, once as they are and once with the bars
   that came after: a function that then says something else about the stretch *looks ahead* (refused) or contradicts itself (*keeps state*, refused).
   One that does neither, but disagrees with its own window, *needs more than its period*: it is computed bar by bar, and that is reported.
5. A node whose inputs have different times is always computed bar by bar, where looking ahead is impossible.

Evidence, not proof: about a hundred stretches and bars are asked about. `parity="full"` compares every bar.
"""

import linecache
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from qmtl_sdk.compute.output import Columns, columns_of, last_row
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.data.bars import NS, Bars, iso
from qmtl_sdk.nodes.node import Node
from qmtl_sdk.nodes.view import CacheView, Window

Verdict = Literal["equal", "looks ahead", "needs more than its period", "keeps state", "bar by bar"]
Progress = Callable[[Node, int, int], None]
TRIES = 100


@dataclass(frozen=True)
class NodeOutput:
    """A node's output over history. Rows before `first` are warm-up and missing."""

    bars: Bars
    first: int = 0


@dataclass(frozen=True)
class ParityCheck:
    """What the check found: the verdict and, where something differs, the bar and both values."""

    node: str
    verdict: Verdict
    bar: str = ""
    detail: str = ""


@dataclass
class Checkpoint:
    """Rows that an interrupted bar-by-bar computation had reached; `save` is called now and then with the rows so far."""

    rows: Columns = field(default_factory=dict)
    done: int = 0
    save: Callable[[Columns, int], None] | None = None


def compute(
    node: Node,
    inputs: Mapping[str, NodeOutput],
    *,
    parity: Literal["sample", "full"] = "sample",
    progress: Progress | None = None,
    partial: Checkpoint | None = None,
) -> tuple[NodeOutput, ParityCheck]:
    """A node's output and how it was come by. Raises QmtlError: E_LOOKAHEAD, E_STATEFUL, E_COMPUTE_FAILED, E_COMPUTE_OUTPUT, E_HISTORY_SHORT."""
    plan = _Plan(node, inputs)
    partial = partial or Checkpoint()
    if plan.aligned and not partial.done:
        batch = _batch(plan)
        if batch is not None:
            found = check(plan, batch, len(plan.ts) if parity == "full" else TRIES)
            if found.verdict == "looks ahead":
                raise QmtlError(
                    "E_LOOKAHEAD",
                    f"{node.label} looks ahead at {found.bar}: {found.detail}",
                    "use only bars up to the present one (no shift(-1), centred windows or back-filling)",
                    node=node.node_id,
                    bar=found.bar,
                )
            if found.verdict == "keeps state":
                raise QmtlError(
                    "E_STATEFUL",
                    f"{node.label} gives two answers for the same bars at {found.bar}: {found.detail}",
                    "compute from the view alone, without state or randomness",
                    node=node.node_id,
                    bar=found.bar,
                )
            if found.verdict == "equal":
                if progress:
                    progress(node, len(plan.ts), len(plan.ts))
                return plan.tape(batch), found
            return _bar_by_bar(plan, progress, partial), found
    return _bar_by_bar(plan, progress, partial), ParityCheck(node.label, "bar by bar")


class _Plan:
    """When a node computes and what it sees then. `ends[input][t]` is the number of the input's bars that have closed at the node's bar `t`."""

    def __init__(self, node: Node, inputs: Mapping[str, NodeOutput]) -> None:
        self.node = node
        self.inputs = {parent.node_id: (parent, inputs[parent.node_id]) for parent in node.inputs}
        self.ts = _clock(node, [tape.bars for _, tape in self.inputs.values()])
        closes = self.ts + node.interval * NS
        self.ends = {
            node_id: np.searchsorted(tape.bars.closes, closes, side="right")
            for node_id, (_, tape) in self.inputs.items()
        }
        self.aligned = all(
            len(tape.bars) == len(self.ts) and np.array_equal(tape.bars.ts, self.ts)
            for _, tape in self.inputs.values()
        )
        self.first, self.origin = (
            0,
            max((tape.first for _, tape in self.inputs.values()), default=0),
        )  # no function sees its inputs' warm-up
        for node_id, (_, tape) in self.inputs.items():
            self.first = max(self.first, int(np.searchsorted(self.ends[node_id], tape.first + node.period)))
        if self.first >= len(self.ts):
            longest = max(self.inputs.values(), key=lambda pair: pair[1].first)[0].label
            raise QmtlError(
                "E_HISTORY_SHORT",
                f"{node.label} needs {node.period} bars of {longest} and there are not so many after its warm-up",
                "use a shorter period, or a world with more history",
                node=node.node_id,
            )

    def view(self, lo: int, hi: int) -> CacheView:
        """Bars `lo` to `hi` of every input, for inputs that have the node's own times."""
        return CacheView(
            {node_id: _window(parent, tape, lo, hi) for node_id, (parent, tape) in self.inputs.items()}
        )

    def view_at(self, t: int) -> CacheView:
        """What the node sees when its bar `t` closes."""
        windows = {}
        for node_id, (parent, tape) in self.inputs.items():
            end = int(self.ends[node_id][t])
            windows[node_id] = _window(parent, tape, max(0, end - self.node.period), end)
        return CacheView(windows)

    def ask(self, lo: int, hi: int) -> Columns | None:
        """The function's answer about bars `lo` to `hi`, or None where it has not a value a bar."""
        return columns_of(self._call(self.view(lo, hi)), self.ts[lo:hi], self.node.label)

    def ask_at(self, t: int) -> dict[str, float]:
        try:
            return last_row(self._call(self.view_at(t)), int(self.ts[t]), self.node.label)
        except QmtlError:
            raise
        except Exception as error:  # the author's function may raise anything; it is reported with its place
            raise author_error(self.node, t, int(self.ts[t]), error) from error

    def _call(self, view: CacheView) -> Any:
        assert self.node.compute_fn is not None  # Build refuses a node without one
        with np.errstate(all="ignore"):
            return self.node.compute_fn(view)

    def tape(self, columns: Columns) -> NodeOutput:
        """The columns as a tape, warm-up rows missing."""
        columns = {name: values.copy() for name, values in columns.items()} or {
            "value": np.full(len(self.ts), np.nan)
        }
        for values in columns.values():
            values[: self.first] = np.nan
        return NodeOutput(Bars(self.ts, columns, self.node.interval), self.first)


def _window(parent: Node, tape: NodeOutput, lo: int, hi: int) -> Window:
    return Window(
        parent.node_id,
        parent.label,
        parent.interval,
        tape.bars.ts[lo:hi],
        {name: values[lo:hi] for name, values in tape.bars.columns.items()},
    )


def _clock(node: Node, inputs: list[Bars]) -> np.ndarray:
    """Opening times of the node's bars: those of the inputs of its own interval, else the whole intervals that finer inputs fill."""
    own = [bars.ts for bars in inputs if bars.interval == node.interval]
    if own:
        first = own[0]
        return (
            first
            if all(np.array_equal(first, other) for other in own[1:])
            else np.unique(np.concatenate(own))
        )
    finer = [bars for bars in inputs if bars.interval < node.interval]
    if not finer:
        raise QmtlError(
            "E_INTERVAL",
            f"{node.label} has an interval of {node.interval} s, finer than all of its inputs",
            "give it the interval of its finest input",
            node=node.node_id,
        )
    step = node.interval * NS
    opened = np.unique(np.concatenate([bars.ts // step * step for bars in finer]))
    return opened[opened + step <= max(int(bars.closes[-1]) for bars in finer)]


def _batch(plan: _Plan) -> Columns | None:
    """The function's answer about the whole history; None where it only works on windows. What it raises here it may well not raise on a window."""
    try:
        columns = plan.ask(plan.origin, len(plan.ts))
    except (
        Exception
    ):  # any failure only means that batch is not possible; bar by bar names the fault, if it is one
        return None
    before = np.full(plan.origin, np.nan)
    return {name: np.concatenate([before, values]) for name, values in columns.items()} if columns else None


def _bar_by_bar(plan: _Plan, progress: Progress | None, partial: Checkpoint) -> NodeOutput:
    total, start = len(plan.ts), max(plan.first, partial.done)
    columns = {
        name: np.concatenate([values[:start], np.full(total - len(values[:start]), np.nan)])
        for name, values in partial.rows.items()
    }
    for t in range(start, total):
        for name, value in plan.ask_at(t).items():
            if name not in columns:
                columns[name] = np.full(total, np.nan)
            columns[name][t] = value
        if progress and (t % 64 == 0 or t + 1 == total):
            progress(plan.node, t + 1, total)
        if partial.save and t % 256 == 255:
            partial.save(columns, t + 1)
    return plan.tape(columns)


def check(plan: _Plan, batch: Columns, tries: int = TRIES, seed: int = 0) -> ParityCheck:
    """Whether `batch` may stand for the bar-by-bar result; see the module's story."""
    node, total = plan.node, len(plan.ts)
    span = min(4 * node.period, (total - plan.first) // 3)
    if span < 1:
        return ParityCheck(node.label, "bar by bar")
    rng = np.random.default_rng(seed)
    for cut in _bars_to_try(batch, max(plan.origin + span, plan.first), total - span, tries, rng):
        found = _compare_stretch(plan, cut, span)
        if found:
            return found
    picks = (
        range(plan.first, total)
        if tries >= total
        else [plan.first, total - 1, *_bars_to_try(batch, plan.first, total, tries, rng)]
    )
    for t in picks:
        window, whole = plan.ask_at(t), {name: float(values[t]) for name, values in batch.items()}
        for name in {*window, *whole}:
            mine, other = window.get(name, np.nan), whole.get(name, np.nan)
            if not _same(mine, other):
                return ParityCheck(
                    node.label,
                    "needs more than its period",
                    iso(int(plan.ts[t])),
                    f"{name} is {mine:g} from {node.period} bars and {other:g} from all",
                )
    return ParityCheck(node.label, "equal")


def _compare_stretch(plan: _Plan, cut: int, span: int) -> ParityCheck | None:
    past, more = _try(plan, cut - span, cut), _try(plan, cut - span, cut + span)
    if past is None or more is None:
        return None
    for name in {*past, *more}:
        missing = np.full(span, np.nan)
        before, after = past.get(name, missing), more.get(name, np.full(2 * span, np.nan))[:span]
        wrong = np.flatnonzero(~_same(before, after))
        if len(wrong):
            again = _try(plan, cut - span, cut) or {}
            stable = _same(again.get(name, missing), before).all()
            row, verdict = int(wrong[0]), "looks ahead" if stable else "keeps state"
            detail = f"{name} is {before[row]:g} from the bars before {iso(int(plan.ts[cut]))} and {after[row]:g} with those after it"
            return ParityCheck(plan.node.label, verdict, iso(int(plan.ts[cut - span + row])), detail)  # type: ignore[arg-type]  # both words are Verdicts
    return None


def _try(plan: _Plan, lo: int, hi: int) -> Columns | None:
    """The answer about a stretch, or None where the function can't work on one so short."""
    try:
        return plan.ask(lo, hi)
    except Exception:  # a function may need its full period; then the comparison of windows decides
        return None


def _same(a: Any, b: Any) -> Any:
    return np.isclose(a, b, rtol=1e-9, atol=1e-12, equal_nan=True)


def _bars_to_try(batch: Columns, lo: int, hi: int, tries: int, rng: np.random.Generator) -> list[int]:
    """Half at random, half where the output changes: there a rare condition shows."""
    if hi <= lo:
        return []
    changes = np.unique(
        np.concatenate([np.flatnonzero(np.diff(values) != 0) + 1 for values in batch.values()])
    )
    changes = changes[(changes >= lo) & (changes < hi)]
    some = rng.choice(changes, min(tries // 2, len(changes)), replace=False) if len(changes) else []
    return [*map(int, rng.integers(lo, hi, tries // 2)), *map(int, some)]


def author_error(node: Node, t: int, ts: int, error: BaseException) -> QmtlError:
    """The author's own line: the innermost frame that is in the file of the compute function."""
    code = getattr(node.compute_fn, "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    mine = [frame for frame in frames if code is not None and frame.filename == code.co_filename]
    place = ""
    if mine:
        last = mine[-1]
        text = (last.line or linecache.getline(last.filename, last.lineno or 0)).strip()
        place = f", line {last.lineno} of {last.filename.rsplit('/', 1)[-1]}: `{text}`"
    said = f"{type(error).__name__}: {error}"
    return QmtlError(
        "E_COMPUTE_FAILED",
        f"{node.label} failed at bar {t} ({iso(ts)}){place}: {said}",
        "mend the compute function",
        node=node.node_id,
        bar=iso(ts),
        error=said,
    )
