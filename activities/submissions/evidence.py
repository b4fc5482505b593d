"""Metrics of a run's uploaded returns. The service computes its own, and never uses the client's.

The returns must fit the run: an interval and price streams of its DAG, and no bar beyond its `as_of`.
"""

from datetime import datetime

from activities.messages.submission import RunContextBody
from qmtl_sdk.contracts.dag import STREAM, Dag
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.data.bars import NS, combined, from_ns, iso, to_ns
from qmtl_sdk.data.calendars import most_periods_per_year
from qmtl_sdk.reports.artifact import decode
from qmtl_sdk.reports.metrics import measure
from qmtl_sdk.reports.returns import Returns


def examine(data: bytes, dag: Dag, run: RunContextBody) -> tuple[dict[str, float | None], Returns]:
    """Compute the metrics of an artifact of returns. Also returns the decoded returns.

    Raises QmtlError: E_RETURNS_INVALID where the returns do not fit the run.
    """
    returns = decode(data)
    if returns.interval not in {node.interval for node in dag.nodes}:
        raise _unfit(
            f"the returns have an interval of {returns.interval} s, which no node of the strategy has"
        )
    streams = {node.node_id for node in dag.nodes if node.node_type == STREAM}
    foreign = set(returns.price_streams) - streams
    if foreign:
        raise _unfit(
            f"the returns name a price stream that the strategy does not read: {sorted(foreign)[0][:40]}"
        )
    if run.context.as_of is not None:
        as_of = datetime.fromisoformat(run.context.as_of)
        last = int(returns.ts[-1]) + returns.interval * NS
        if last > to_ns(as_of):
            raise _unfit(f"the returns reach to {iso(last)}, beyond the run's as_of of {run.context.as_of}")
    return measure(
        returns, most_periods_per_year(run.bindings, returns.price_streams, returns.interval)
    ), returns


def data_range(returns: Returns, run: RunContextBody) -> tuple[datetime, datetime]:
    """Return the first and last time of the data: of the world's streams, or else of the returns.

    A strategy that brings its own data has no streams of the world.
    """
    first = run.data_first or from_ns(int(returns.ts[0]))
    last = run.data_last or from_ns(int(returns.ts[-1]) + returns.interval * NS)
    return first, last


def measured_fingerprint(dag: Dag, run: RunContextBody) -> str:
    """Return the fingerprint of the data that the service has read for a run; empty where it has read none.

    A strategy that only queries queues of others reads no data: that is known as well.
    """
    if run.context.dataset_fingerprint or any(node.node_type == STREAM for node in dag.nodes):
        return run.context.dataset_fingerprint or ""
    return combined([])


def sectors(returns: Returns, run: RunContextBody) -> tuple[str, ...]:
    """Return the sector of each price stream by its preset; empty where one of them has none."""
    found = [
        binding.preset.sectors.get(binding.stream, "")
        for binding in run.bindings
        if binding.node_id in returns.price_streams
    ]
    return tuple(found) if all(found) else ()


def _unfit(what: str) -> QmtlError:
    return QmtlError("E_RETURNS_INVALID", what, "upload what the SDK's engine computed for this run")
