"""What order log and ledger of a world say, against all that the spot exchange has.

At rest each order is at the exchange once at most, in the state and with the fills that the log has, and
positions and cash are the same to the last digit.
"""

from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from sqlalchemy import text

from activities.brokers.client_ids import client_id, order_id_of
from activities.ledger.sql import SqlLedger
from activities.storage.database import Database
from qmtl_sdk.contracts.fills import OrderFills
from qmtl_sdk.contracts.ledger import PositionFilter

_STATES = {"FILLED": "filled", "CANCELED": "cancelled", "EXPIRED": "expired"}


@dataclass
class Comparison:
    """`ends`: the last state of each order in the log. `broken`: where it is not as the exchange says."""

    ends: dict[str, str] = field(default_factory=dict)
    doubled: int = 0
    broken: list[str] = field(default_factory=list)


def compare(database: Database, world: str, theirs: Any) -> Comparison:
    """Compare a world with what the exchange tells of itself. (Any: JSON.)"""
    ends, filled, halts = _logged(database, world)
    found = Comparison(ends, broken=[f"halted: {reason}" for reason in halts])
    names = Counter(order["client_id"] for order in theirs["orders"])
    for order in theirs["orders"]:
        ref = order_id_of(order["client_id"])
        if ref not in ends:
            found.doubled += 1
            found.broken.append(f"the exchange has an order that the log has not: {order['client_id']}")
            continue
        if names[order["client_id"]] > 1:
            found.doubled += 1
            found.broken.append(f"order {ref} was placed {names[order['client_id']]} times")
        there = (_STATES.get(order["status"], "open"), Decimal(order["filled"]))
        ours = (ends[ref], filled.get(ref, Decimal(0)))
        if ours != there:
            found.broken.append(f"order {ref} is {ours} in the log, {there} at the exchange")
    for ref, end in ends.items():
        if client_id(ref) not in names and (end == "filled" or filled.get(ref)):
            found.broken.append(f"order {ref} is {end} in the log, and the exchange has never had it")
    found.broken += _compare_books(database, world, theirs["balances"])
    return found


def _compare_books(database: Database, world: str, balances: dict[str, str]) -> list[str]:
    held = {asset: Decimal(balance) for asset, balance in balances.items()}
    ours = dict.fromkeys(held, Decimal(0))
    for item in SqlLedger(database).positions(world, PositionFilter(closed=True)):
        ours[item.symbol] += item.position.quantity
        ours["USDT"] += item.position.cash
    return [] if ours == held else [f"the ledger has {ours}, the exchange {held}"]


def _logged(database: Database, world: str) -> tuple[dict[str, str], dict[str, Decimal], list[str]]:
    """The last state of each order, what was filled of it, and why the world was halted."""
    ends, filled, halts = dict[str, str](), dict[str, Decimal](), list[str]()
    query = text("SELECT kind, ref, reason, body FROM order_log WHERE world_id = :w ORDER BY seq")
    with database.read() as session:
        rows = session.connection().execute(query, {"w": world}).all()
    for kind, ref, reason, body in rows:
        if kind == "halt":
            halts.append(reason)
        if not ref.startswith("order:"):
            continue
        if kind != "fill":
            ends[ref] = kind
        if body and '"fills"' in body:
            new = sum((fill.quantity for fill in OrderFills.model_validate_json(body).fills), Decimal(0))
            filled[ref] = filled.get(ref, Decimal(0)) + new
    return ends, filled, halts
