"""Computes a node over history: bar by bar, or in one call where that gives the same result.

1. A node computes when a bar of its own interval closes. It reads the last `period` bars of each input that
   have closed by then (`plan`).
2. It computes first when every input has `period` values that are not warm-up; before that its output is
   missing.
3. `_bar_by_bar` calls the function once a bar. `_batch` calls it once for the whole history.
4. `parity.check_parity` decides whether the batch result may replace the bar-by-bar one. A function whose
   rows depend on later rows, or that returns two results for the same bars, is refused.
5. A node whose inputs have different times is always computed bar by bar, where looking ahead is impossible.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from qmtl_sdk.compute.output import Columns, NodeOutput
from qmtl_sdk.compute.parity import TRIES, ParityCheck, check_parity
from qmtl_sdk.compute.plan import NodePlan
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.nodes.node import Node

Progress = Callable[[Node, int, int], None]
"""Called with the node, the bars done and all its bars."""

_PROGRESS_EVERY = 64
"""Bars between two reports of progress: a report per bar would cost more than most functions."""

_SAVE_EVERY = 256
"""Bars between two saves of a checkpoint: an interruption loses less than that."""


@dataclass
class Checkpoint:
    """Rows of an interrupted bar-by-bar computation. `save` is called now and then with the rows so far."""

    rows: Columns = field(default_factory=dict)
    done: int = 0
    save: Callable[[Columns, int], None] | None = None


def compute(
    node: Node,
    inputs: Mapping[str, NodeOutput],
    *,
    parity: Literal["sample", "full"] = "sample",
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[NodeOutput, ParityCheck]:
    """Compute a node's output; also return the parity verdict.

    Raises QmtlError: E_LOOKAHEAD, E_STATEFUL, E_COMPUTE_FAILED, E_COMPUTE_OUTPUT, E_OUTPUT_TIME,
    E_HISTORY_SHORT, E_INTERVAL.
    """
    plan = NodePlan(node, inputs)
    checkpoint = checkpoint or Checkpoint()
    batch = _batch(plan) if plan.aligned and not checkpoint.done else None
    if batch is None:
        return _bar_by_bar(plan, progress, checkpoint), ParityCheck(node.label, "bar by bar")
    found = check_parity(plan, batch, len(plan.ts) if parity == "full" else TRIES)
    if found.verdict == "looks ahead":
        raise QmtlError(
            "E_LOOKAHEAD",
            f"{node.label} looks ahead at {found.bar}: {found.detail}",
            "let each row depend on its own bar and earlier ones (rolling(n) instead of a mean of the whole "
            "view; no shift(-1), centred windows or back-filling), or return one number for the window",
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
    if found.verdict != "equal":
        return _bar_by_bar(plan, progress, checkpoint), found
    if progress:
        progress(node, len(plan.ts), len(plan.ts))
    return plan.output(batch), found


def _batch(plan: NodePlan) -> Columns | None:
    """Call the function once for the whole history; None where it only works on windows."""
    try:
        columns = plan.compute_range(plan.origin, len(plan.ts))
    except QmtlError as error:
        if error.code == "E_OUTPUT_TIME":  # rows of other times are a fault in every form
            raise
        return None
    except Exception:  # the function may work on windows; if it doesn't, bar by bar names the fault
        return None
    before = np.full(plan.origin, np.nan)
    return {name: np.concatenate([before, values]) for name, values in columns.items()} if columns else None


def _bar_by_bar(plan: NodePlan, progress: Progress | None, checkpoint: Checkpoint) -> NodeOutput:
    """Call the function once a bar, from the checkpoint on."""
    total = len(plan.ts)
    start = max(plan.first, checkpoint.done)
    columns = {
        name: np.concatenate([values[:start], np.full(total - len(values[:start]), np.nan)])
        for name, values in checkpoint.rows.items()
    }
    for t in range(start, total):
        for name, value in plan.compute_bar(t).items():
            if name not in columns:
                columns[name] = np.full(total, np.nan)
            columns[name][t] = value
        if progress and (t % _PROGRESS_EVERY == 0 or t + 1 == total):
            progress(plan.node, t + 1, total)
        if checkpoint.save and (t + 1) % _SAVE_EVERY == 0:
            checkpoint.save(columns, t + 1)
    return plan.output(columns)
