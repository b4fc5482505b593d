"""Reads the order log and the audit trail afterwards, and says which promises were broken.

It knows nothing of the fence's code: only what the rows say. `fence_model.py` says what should have been
accepted and refused; here are the states of orders, the answers that publishers got, and the audit chain.
"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from blake3 import blake3
from sqlalchemy import text

from activities.storage.database import Database
from tests.support.fence_model import Unrouted, fence_violations
from tests.support.flatten_model import flatten_violations

STATES = {"sent", "partially_filled", "filled", "cancelled", "rejected", "expired"}
ENDS = {"completed", "rolled_back", "frozen"}

UNANSWERED = "unanswered"
"""What stands for a verdict where a Gateway that lived did not answer."""


def order_violations(
    database: Database,
    world: str,
    acknowledged: dict[str, str],
    at_rest: bool = True,
    unrouted: Sequence[Unrouted] = (),
) -> list[str]:
    """`acknowledged`: what publishers were told, by order id, or `UNANSWERED`.

    `unrouted`: when live orders had to be refused, and when they might be, as no router worked.
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
    broken = [
        *fence_violations(log, audit, unrouted),
        *flatten_violations(log),
        *_orders(log, acknowledged, at_rest),
        *_chain(audit),
    ]
    ended = Counter(row["subject"] for row in audit if row["action"] == "apply.ended")
    for row in applies:
        if at_rest and row["outcome"] not in ENDS:
            broken.append(f"apply {row['run_id']} has not ended")
        if ended[row["run_id"]] > 1 or (row["ended_at"] and not ended[row["run_id"]]):
            broken.append(f"apply {row['run_id']} ended {ended[row['run_id']]} times in the audit trail")
    return broken


# The states of an order, each with those that may follow it. An end has none.
_NEXT = {
    "accepted": {"sent", "cancelled", "expired"},
    "sent": {"partially_filled", "filled", "cancelled", "rejected", "expired"},
    "partially_filled": {"partially_filled", "filled", "cancelled", "rejected", "expired"},
}


def _orders(log: Any, acknowledged: dict[str, str], at_rest: bool) -> list[str]:
    """Nothing lost, nothing doubled, each order in a state that follows from the one before. (Any: rows.)"""
    broken: list[str] = []
    states: dict[str, str] = {}
    reasons = {}
    halt_epoch, halted, accepted_in = 0, False, dict[str, int]()
    flattens = set[str]()
    halted_strategies = set[str]()
    for row in log:
        kind, ref = row["kind"], row["ref"]
        if row["strategy_id"] and kind in ("halt", "resume"):
            (halted_strategies.add if kind == "halt" else halted_strategies.discard)(ref)
        elif kind == "halt":
            halt_epoch, halted = row["epoch"], True
        elif kind == "resume":
            halted = False
        elif kind in ("accepted", "refused", "withheld"):
            if json.loads(row["body"]).get("origin") == "flatten":
                flattens.add(ref)
            if ref in states:
                broken.append(f"order {ref} is in the log twice")
            states[ref], accepted_in[ref] = kind, row["epoch"]
            reasons[ref] = row["reason"] or kind
        elif kind in STATES:
            if kind not in _NEXT.get(states.get(ref, ""), ()):
                broken.append(f"{row['seq']}: order {ref} was {kind} after {states.get(ref, 'nothing')}")
            stopped = halted or row["strategy_id"] in halted_strategies
            stopped = stopped or accepted_in.get(ref, 0) < halt_epoch
            if kind == "sent" and stopped and ref not in flattens:
                broken.append(f"{row['seq']}: order {ref} was sent in spite of a halt")
            states[ref] = kind
    for order_id, said in acknowledged.items():
        if said == UNANSWERED:
            broken.append(
                f"order {order_id} was not answered; the log has {reasons.get(order_id, 'nothing')}"
            )
            continue
        # Who does not hold the session is told so, and leaves no row: nobody uses up another's order ids.
        without_proof = said == "no_session" and order_id not in reasons
        if reasons.get(order_id) != said and not without_proof:
            broken.append(f"order {order_id} was told {said}, the log has {reasons.get(order_id, 'nothing')}")
    if at_rest:
        broken += [f"order {ref} was accepted and has not ended" for ref, at in states.items() if at in _NEXT]
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
