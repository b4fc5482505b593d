"""Reads the order log and the audit trail afterwards, and says which promises were broken.

It knows nothing of the fence's code: only what the rows say.

The order log has orders, fills and changes of the fence in one order. What else an order depends on
(decisions, activations, sessions, the world itself) stands in the audit trail, under the same clock: both
were written under the world's lock.
"""

import json
from bisect import bisect_right
from collections import Counter, defaultdict
from datetime import datetime, timedelta
from typing import Any

from blake3 import blake3
from sqlalchemy import text

from activities.storage.database import Database

DOMAINS = {"paper": "dryrun", "live": "live"}
ENDS = {"completed", "rolled_back", "frozen"}


class Timeline:
    """The value that held at a time."""

    def __init__(self) -> None:
        self._at: list[str] = []
        self._values: list[Any] = []

    def add(self, at: str, value: Any) -> None:
        self._at.append(at)
        self._values.append(value)

    def value(self, at: str, default: Any = None) -> Any:
        found = bisect_right(self._at, at)
        return self._values[found - 1] if found else default


def order_violations(
    database: Database, world: str, acknowledged: dict[str, str], at_rest: bool = True
) -> list[str]:
    """`acknowledged`: what publishers were told, by order id.

    `at_rest`: nothing is under way any more, so everything must have ended.
    """
    with database.read() as session:
        connection = session.connection()
        log = (
            connection.execute(
                text(
                    "SELECT seq, at, kind, ref, epoch, strategy_id, reason, body FROM order_log "
                    "WHERE world_id = :w ORDER BY seq"
                ),
                {"w": world},
            )
            .mappings()
            .all()
        )
        audit = (
            connection.execute(text("SELECT * FROM audit WHERE chain = :w ORDER BY number"), {"w": world})
            .mappings()
            .all()
        )
        applies = (
            connection.execute(
                text("SELECT run_id, outcome, ended_at FROM apply WHERE world_id = :w"), {"w": world}
            )
            .mappings()
            .all()
        )
    broken = [*_gate(log), *_orders(log, acknowledged, at_rest), *_surroundings(log, audit), *_chain(audit)]
    ended = Counter(row["subject"] for row in audit if row["action"] == "apply.ended")
    for row in applies:
        if at_rest and row["outcome"] not in ENDS:
            broken.append(f"apply {row['run_id']} has not ended")
        if ended[row["run_id"]] > 1 or (row["ended_at"] and not ended[row["run_id"]]):
            broken.append(f"apply {row['run_id']} ended {ended[row['run_id']]} times in the audit trail")
    return broken


def _gate(log: Any) -> list[str]:
    """Orders and changes of the fence, in the order in which they happened. (Any: rows.)"""
    broken, owner, draining, halted, epoch = [], "", False, False, 1
    for row in log:
        kind, ref = row["kind"], row["ref"]
        if kind in ("freeze", "unfreeze", "halt", "resume"):
            if row["epoch"] <= epoch:
                broken.append(f"{row['seq']}: {kind} does not raise the epoch beyond {epoch}")
            epoch = row["epoch"]
        if kind == "freeze":
            if owner:
                broken.append(f"{row['seq']}: {ref} froze the world inside {owner}")
            owner, draining = ref, False
        elif kind in ("drain", "switch", "restore", "unfreeze"):
            if owner != ref:
                broken.append(f"{row['seq']}: {kind} by {ref}, while {owner or 'nobody'} holds the world")
            draining = kind != "unfreeze"
            owner = "" if kind == "unfreeze" else owner
        elif kind in ("halt", "resume"):
            halted = kind == "halt"
        elif kind == "accepted":
            if owner:
                broken.append(
                    f"{row['seq']}: order {ref} was accepted "
                    f"while {'draining' if draining else 'frozen'} by {owner}"
                )
            if halted:
                broken.append(f"{row['seq']}: order {ref} was accepted while halted")
            decided = json.loads(row["body"])["epoch"]
            if not decided == row["epoch"] == epoch:
                broken.append(
                    f"{row['seq']}: order {ref} of epoch {decided} was accepted under epoch {row['epoch']}, "
                    f"the world's is {epoch}"
                )
    return broken


def _orders(log: Any, acknowledged: dict[str, str], at_rest: bool) -> list[str]:
    """Nothing lost, nothing doubled."""
    broken: list[str] = []
    kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
    reasons = {}
    for row in log:
        kinds[row["ref"]][row["kind"]] += 1
        if row["kind"] in ("accepted", "refused"):
            reasons[row["ref"]] = "accepted" if row["kind"] == "accepted" else row["reason"]
    for order_id, said in acknowledged.items():
        if reasons.get(order_id) != said:
            broken.append(f"order {order_id} was told {said}, the log has {reasons.get(order_id, 'nothing')}")
    for ref, count in kinds.items():
        if count["accepted"] + count["refused"] > 1:
            broken.append(f"order {ref} is in the log twice")
        if count["filled"] > count["accepted"]:
            broken.append(
                f"order {ref} was filled {count['filled']} times, accepted {count['accepted']} times"
            )
        if at_rest and count["accepted"] and not count["filled"]:
            broken.append(f"order {ref} was accepted and never filled")
    return broken


def _surroundings(log: Any, audit: Any) -> list[str]:
    """What an order depends on besides the fence, at the time of its acceptance."""
    fresh, allowed, edge, limit = Timeline(), Timeline(), Timeline(), Timeline()
    activations: defaultdict[str, Timeline] = defaultdict(Timeline)
    sessions: dict[str, Timeline] = defaultdict(Timeline)
    for row in audit:
        after, at = json.loads(row["after"]) or {}, row["at"]
        match row["action"]:
            case "world.created":
                allowed.add(at, after["spec"]["allow_live"])
                limit.add(at, after["spec"]["circuit_breaker"]["max_orders_per_minute"])
            case "world.updated":
                if "allow_live" in after:
                    allowed.add(at, after["allow_live"])
                if "circuit_breaker" in after:
                    limit.add(at, after["circuit_breaker"].get("max_orders_per_minute"))
            case "decision.made":
                fresh.add(
                    at,
                    (
                        datetime.fromisoformat(after["decided_at"].replace("Z", "+00:00"))
                        + timedelta(seconds=after["ttl"])
                    ).isoformat(timespec="microseconds"),
                )
            case "activation.changed":
                activations[row["subject"]].add(
                    at, (after["active"], DOMAINS.get(after["effective_mode"], "backtest"))
                )
            case "session.opened":
                sessions[row["subject"]].add(at, (after["strategy_id"], after["execution_domain"]))
            case "session.ended":
                sessions[row["subject"]].add(at, None)
            case "apply.frozen" | "apply.unfrozen" | "apply.switched":
                edge.add(at, after["live_edge"])
            case "edge.overridden":
                edge.add(at, after["active"])
    broken: list[str] = []
    in_minute: Counter[str] = Counter()
    for row in log:
        if row["kind"] != "accepted":
            continue
        order, at, where = (
            json.loads(row["body"]),
            row["at"],
            f"{row['seq']}: order {row['ref']} was accepted",
        )
        active, domain = activations[row["strategy_id"]].value(at, (False, "backtest"))
        if fresh.value(at, "") < at:
            broken.append(f"{where} after the decision was stale")
        if order["execution_domain"] == "shadow":
            broken.append(f"{where} from shadow")
        elif not active:
            broken.append(f"{where} for a strategy that is not active")
        elif order["execution_domain"] != domain:
            broken.append(f"{where} in {order['execution_domain']}, the strategy's stage is {domain}")
        if sessions[order["session_id"]].value(at) != (row["strategy_id"], order["execution_domain"]):
            broken.append(f"{where} without a session")
        if order["execution_domain"] == "live":
            if not allowed.value(at, False):
                broken.append(f"{where} where live is not allowed")
            if not edge.value(at, False):
                broken.append(f"{where} over a closed edge")
        most = limit.value(at)
        in_minute[at[:16]] += most is not None  # the breaker counts while there is one
        if most is not None and in_minute[at[:16]] > most:
            broken.append(f"{where} beyond the circuit breaker's {most}")
    return broken


def _chain(audit: Any) -> list[str]:
    """The hash chain, by its definition: each part of a row preceded by its length in eight bytes."""
    before = ""
    for number, row in enumerate(audit, 1):
        parts = [
            before,
            row["chain"],
            str(row["number"]),
            row["at"],
            row["actor"],
            row["action"],
            row["world_id"],
            row["subject"],
            row["correlation_id"],
            row["before"],
            row["after"],
        ]
        encoded = [part.encode() for part in parts]
        found = (
            "blake3:" + blake3(b"".join(len(part).to_bytes(8, "big") + part for part in encoded)).hexdigest()
        )
        if row["number"] != number or row["hash"] != found:
            return [f"the audit chain is broken at entry {number}"]
        before = found
    return []
