"""Compute a submission that no Gateway answers: only here, as a backtest in safe mode, without a decision.

The world decides what a strategy reads and at which costs. This uses what it said at the newest submission
of the strategy from this machine (`remember`). A strategy that brings all of its data needs none of that.
Outputs are neither read from the cache nor written to it: only services derive ComputeKeys.
"""

from datetime import datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from qmtl_sdk.contracts.canonical import hash_parts
from qmtl_sdk.contracts.clocks import declared_clock
from qmtl_sdk.contracts.dag import STREAM
from qmtl_sdk.contracts.domains import ComputeContext, Domain, Downgrade
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.identity import PREFIX
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.submission import StreamBindings, SubmissionAck
from qmtl_sdk.contracts.worlds import Execution, UtcTime
from qmtl_sdk.data.presets import fingerprint_of
from qmtl_sdk.nodes.strategy import BuiltStrategy
from qmtl_sdk.runtime.routes.transport import NOT_A_GATEWAY

_TIME: TypeAdapter[datetime] = TypeAdapter(UtcTime)


class _Remembered(Model):
    """What a world said of a strategy's data and costs."""

    bindings: StreamBindings = ()
    execution: Execution = Execution()
    as_of: str | None = None


def is_unreachable(error: QmtlError) -> bool:
    """Return whether an error says that no Gateway answers, and not that the address is another server's."""
    return error.code == "E_UNAVAILABLE" and not error.details.get(NOT_A_GATEWAY)


def remember(folder: Path, ack: SubmissionAck) -> None:
    """Store what a world said of a strategy."""
    found = _Remembered(bindings=ack.bindings, execution=ack.execution, as_of=ack.context.as_of)
    file = _file(folder, ack.world_id, ack.strategy_id)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(found.model_dump_json())


def acknowledge_here(build: BuiltStrategy, world_id: str, as_of: str | None, folder: Path) -> SubmissionAck:
    """Build the acknowledgement that no Gateway gives: closed for orders, and without queues or ComputeKeys.

    Raises QmtlError (E_BODY_INVALID) where `as_of` is not a time.
    """
    known = _read(_file(folder, world_id, build.dag.strategy_id))
    # Nothing beyond what the world's clock had reached.
    times = [as_of, known.as_of if known.bindings else None]
    ends = [_time(item) for item in times if item]
    context = ComputeContext(
        world_id=world_id,
        execution_domain=Domain.BACKTEST,
        as_of=min(ends).isoformat() if ends else None,
        dataset_fingerprint=fingerprint_of(known.bindings) if known.bindings else None,
        clock=declared_clock(build.dag.nodes),
        downgraded=True,
        safe_mode=True,
        downgrade_reason=Downgrade.DECISION_UNAVAILABLE,
    )
    return SubmissionAck(
        world_id=world_id,
        strategy_id=build.dag.strategy_id,
        workflow_id="",
        run_id="",
        queue_map={},
        nodes_new=0,
        nodes_reused=0,
        sentinel_id="",
        context=context,
        bindings=known.bindings,
        execution=known.execution,
    )


def unbound(build: BuiltStrategy, ack: SubmissionAck) -> list[str]:
    """Return the labels of the streams whose data nobody has named."""
    bound = {binding.node_id for binding in ack.bindings}
    return [
        node.label
        for node in build.dag.nodes
        if node.node_type == STREAM and "source" not in node.params and node.node_id not in bound
    ]


def _file(folder: Path, world_id: str, strategy_id: str) -> Path:
    return folder / "worlds" / f"{hash_parts(world_id, strategy_id).removeprefix(PREFIX)[:32]}.json"


def _read(file: Path) -> _Remembered:
    try:
        return _Remembered.model_validate_json(file.read_text())
    except (FileNotFoundError, ValidationError):  # never submitted, or by another version
        return _Remembered()


def _time(text: str) -> datetime:
    try:
        return _TIME.validate_python(text)
    except ValueError as error:
        raise QmtlError(
            "E_BODY_INVALID", f"as_of is {text[:64]!r}, which is not a time", "write 2024-01-31T14:00:00Z"
        ) from error
