"""Events of a world as lines of text."""

from collections.abc import Callable
from typing import Any

from api.cli.names import StrategyNames
from api.cli.text.applies import VERDICTS
from qmtl_sdk.contracts.decisions import WHOLE_WORLD
from qmtl_sdk.contracts.domains import stage_of
from qmtl_sdk.contracts.events import CloudEvent

SHORT_SESSION = 8
"""Characters of a session's id that are shown: enough to tell the sessions of a world apart."""

Data = dict[str, Any]
"""An event's data. (Any: whatever JSON its type carries.)"""


def event_line(event: CloudEvent, names: StrategyNames, halted: str = "") -> str:
    """Describe an event in one line. `halted`: why the world is halted now, for an event of a halt."""
    data: Data = event.data or {}
    describe = _TEXTS.get(event.type)
    text = describe(data, names) if describe else event.subject[:60]
    if event.type == "activation_updated" and data.get("strategy_id") == WHOLE_WORLD:
        text = _fence_change(data, halted)
    return f"{event.time:%Y-%m-%d %H:%M:%S} UTC  {event.type:<20} {text}"


def _fence_change(data: Data, halted: str) -> str:
    """Describe a change of the world's fence."""
    epoch = f"epoch {data.get('epoch')}"
    if data.get("halted"):
        return f"halted: {halted or 'no reason given'} ({epoch})"
    if data.get("drain"):
        return f"frozen: waits until no accepted order is open ({epoch})"
    if data.get("freeze"):
        return f"frozen: orders are refused ({epoch})"
    return f"open: orders are accepted ({epoch})"


def _activation(data: Data, names: StrategyNames) -> str:
    name = names[str(data.get("strategy_id"))]
    if data.get("halted"):
        return f"{name} is halted: its orders are refused"
    if data.get("phase") == "resume":
        return f"{name} is no longer halted"
    if not data.get("active"):
        return f"{name} is not active"
    stage = stage_of(data.get("effective_mode"))
    return f"{name} is active in {stage}, weight {data.get('weight', 0):.3g}"


def _decision(data: Data, _: StrategyNames) -> str:
    return f"decided by policy version {data.get('policy_version')}: {data.get('reason')}"


def _policy(data: Data, _: StrategyNames) -> str:
    return f"policy version {data.get('version')} is the default now"


def _queues(data: Data, _: StrategyNames) -> str:
    tags = "+".join(data.get("tags", [])) or "nothing"
    return f"{len(data.get('queues', []))} queue(s) tagged {tags} in {data.get('execution_domain')}"


def _tag_query(data: Data, _: StrategyNames) -> str:
    tags = "+".join(data.get("tags", []))
    return (
        f"the query for {tags} finds {len(data.get('queues', []))} queue(s) in {data.get('execution_domain')}"
    )


def _queue_lifecycle(data: Data, _: StrategyNames) -> str:
    return f"{data.get('queue')}: {data.get('change')}"


def _sentinel(data: Data, names: StrategyNames) -> str:
    return f"the traffic of {names[str(data.get('strategy_id'))]} has weight {data.get('weight')}"


def _session_opened(data: Data, names: StrategyNames) -> str:
    return f"{names[str(data.get('strategy_id'))]} runs (session {_session(data)})"


def _session_ended(data: Data, names: StrategyNames) -> str:
    name = names[str(data.get("strategy_id"))]
    return f"{name} no longer runs (session {_session(data)}): {data.get('reason')}"


def _apply(data: Data, _: StrategyNames) -> str:
    reason = f": {data['reason']}" if data.get("reason") else ""
    return f"{data.get('run_id')} {data.get('title', '')}: {data.get('state')}{reason}".replace(" :", ":")


def _approval(data: Data, _: StrategyNames) -> str:
    verdict = VERDICTS.get(str(data.get("verdict")), str(data.get("verdict")))
    return f"{data.get('actor')} {verdict} {data.get('run_id')}"


def _promotion(data: Data, names: StrategyNames) -> str:
    reason = f": {data['reason']}" if data.get("reason") else ""
    return f"the promotion of {names[str(data.get('strategy_id'))]} is {data.get('state')}{reason}"


def _session(data: Data) -> str:
    return str(data.get("session_id"))[:SHORT_SESSION]


_TEXTS: dict[str, Callable[[Data, StrategyNames], str]] = {
    "activation_updated": _activation,
    "decision_updated": _decision,
    "policy_updated": _policy,
    "queue_updated": _queues,
    "tagquery.upsert": _tag_query,
    "queue_lifecycle": _queue_lifecycle,
    "sentinel_weight": _sentinel,
    "session.opened": _session_opened,
    "session.ended": _session_ended,
    "apply.requested": _apply,
    "apply.state": _apply,
    "approval.given": _approval,
    "approval.rejected": _approval,
    "promotion.state": _promotion,
}
