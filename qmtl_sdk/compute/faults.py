"""Errors raised by an author's compute function, reported with the author's own line."""

import linecache
import traceback

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.data.bars import iso
from qmtl_sdk.nodes.node import Node

# What to do about a write to a window: numpy and pandas say "read-only" in all their errors about that.
_COPY = "windows are read-only: change a copy, such as view[node].frame.copy() or view[node].values.copy()"


def author_error(node: Node, t: int, ts: int, error: BaseException) -> QmtlError:
    """Return E_COMPUTE_FAILED for an exception at bar `t`, which opens at `ts` (ns).

    The line shown is the innermost frame in the file of the compute function.
    """
    code = getattr(node.compute_fn, "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if code is not None and frame.filename == code.co_filename]
    place = ""
    if own:
        last = own[-1]
        text = (last.line or linecache.getline(last.filename, last.lineno or 0)).strip()
        place = f", line {last.lineno} of {last.filename.rsplit('/', 1)[-1]}: `{text}`"
    cause = f"{type(error).__name__}: {error}"
    return QmtlError(
        "E_COMPUTE_FAILED",
        f"{node.label} failed at bar {t} ({iso(ts)}){place}: {cause}",
        _COPY if "read-only" in str(error) else "correct the compute function",
        node=node.node_id,
        bar=iso(ts),
        error=cause,
    )
