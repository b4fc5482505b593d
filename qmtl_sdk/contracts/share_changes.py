"""The request that changes shares of worlds, built from the present shares and positions.

Commands and schedules build it here, so that the same change is the same request.
"""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from qmtl_sdk.contracts.allocations import AllocationSnapshot, AllocationUpdate, changes_between
from qmtl_sdk.contracts.capital import DEFAULT_LOT
from qmtl_sdk.contracts.documents import validated
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.instruments import InstrumentConstraints
from qmtl_sdk.contracts.ledger import HeldPosition
from qmtl_sdk.contracts.rebalancing import MultiWorldRebalanceRequest

Rules = Mapping[str, Any]
"""Rules of instruments, as JSON. (Any: of several types.)"""


def update_of(present: AllocationSnapshot, shares: Mapping[str, Decimal], etag: str) -> AllocationUpdate:
    """Return the allocations with other shares. Raises QmtlError: E_BODY_INVALID, E_WEIGHT.

    A strategy with a share of its own keeps its part of its world, where that stays what it was.
    """
    held = {item.world_id: item for item in present.allocations}
    items = []
    for name, weight in shares.items():
        old = held.get(name)
        if old is not None and old.strategies and old.weight != weight:
            raise QmtlError(
                "E_WEIGHT",
                f"strategies of {name} have shares of their own, which would have to change too",
                "name all of them: POST /allocations, or rebalance-apply --plan-file FILE",
            )
        items.append({"world_id": name, "weight": weight, "strategies": old.strategies if old else {}})
    body = {"allocations": items, "etag": etag}
    found: AllocationUpdate = validated(AllocationUpdate, body, "E_BODY_INVALID", "allocation")
    return found


def common_rules(rules_by_world: Mapping[str, InstrumentConstraints]) -> Rules:
    """Return the rules of instruments that all these worlds have. Raises QmtlError (E_BODY_INVALID)."""
    rules = next(iter(rules_by_world.values()))
    if any(item != rules for item in rules_by_world.values()):
        raise QmtlError(
            "E_BODY_INVALID",
            f"{', '.join(rules_by_world)} have different rules of instruments",
            "give the rules of the plan with --instruments FILE; for a schedule: qmtl world update W "
            "FILE, until all have the same `instruments`",
        )
    body = rules.json_dict()
    return {**body, "lot": body.get("lot") or str(DEFAULT_LOT)}


def changed_request(
    present: AllocationSnapshot,
    update: AllocationUpdate,
    rules: Rules,
    held: Mapping[str, Sequence[HeldPosition]],
) -> MultiWorldRebalanceRequest:
    """Return the request. `held`: the positions of its worlds. Raises QmtlError (E_BODY_INVALID)."""
    named = {item.world_id for item in update.allocations}
    marks = newest_marks(item for positions in held.values() for item in positions)
    positions = [
        {
            "world_id": world_id,
            "strategy_id": item.strategy_id,
            "venue": item.account,
            "symbol": item.symbol,
            "quantity": item.position.quantity,
            "mark": marks[item.account, item.symbol],
        }
        for world_id, items in sorted(held.items())
        for item in items
    ]
    body = {
        "schema_version": 2,
        "worlds": changes_between(
            [item for item in present.allocations if item.world_id in named], update.allocations
        ),
        "positions": positions,
        "instruments": rules,
        "allocations_etag": present.etag,
    }
    found: MultiWorldRebalanceRequest = validated(
        MultiWorldRebalanceRequest, body, "E_BODY_INVALID", "rebalancing"
    )
    return found


def newest_marks(held: Iterable[HeldPosition]) -> dict[tuple[str, str], Decimal]:
    """Return the newest mark of each instrument: strategies that trade it at other times have other marks."""
    newest = sorted(held, key=lambda item: item.position.marked_at)
    return {(item.account, item.symbol): item.position.mark for item in newest}
