"""Collects what a store and an exchange hold of runs of rebalancings, for `rebalancing_checker.py`."""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text

from activities.artifacts.folder import FolderArtifacts
from activities.ledger.sql import SqlLedger
from activities.retention.archives import Archives
from activities.retention.ledger import LedgerProjection
from activities.storage.database import Database
from qmtl_sdk.contracts.ledger import PositionFilter
from tests.support.rebalancing_checker import Facts, LogFact, Place, RunFact, TheirOrder, TradeFact


def collect(database: Database, home: Path, first: Mapping[str, Decimal], theirs: Any) -> Facts:
    """Read all of the worlds that `first` gives shares. (Any: JSON of the exchange, `GET /all`.)"""
    worlds = sorted(first)
    projection = LedgerProjection(database, Archives(FolderArtifacts(home / "artifacts")))
    ledger = SqlLedger(database)
    with database.read() as session:
        connection = session.connection()
        runs = _runs(connection, worlds)
        log = [fact for world in worlds for fact in _log(connection, world)]
        fences = _rows(connection, "SELECT world_id, rebalancing FROM fence")
        allocations = _rows(connection, "SELECT world_id, body, scales FROM allocation")
    return Facts(
        runs=runs,
        log=log,
        theirs=_theirs(theirs, worlds),
        doubled=theirs["doubled"],
        held={
            (world, item.strategy_id, item.account, item.symbol): item.position.quantity
            for world in worlds
            for item in ledger.positions(world, PositionFilter(limit=10_000))
        },
        differences=[
            f"{world}: {found}" for world in worlds for found in projection.verify(world).differences
        ],
        locks={row["world_id"]: row["rebalancing"] for row in fences if row["world_id"] in first},
        first=first,
        shares={row["world_id"]: Decimal(json.loads(row["body"])["weight"]) for row in allocations},
        scales={row["world_id"]: _scale(row["scales"]) for row in allocations},
    )


def _rows(connection: Connection, query: str, **values: str) -> Sequence[Mapping[str, Any]]:
    return [dict(row) for row in connection.execute(text(query), values).mappings()]


def _scale(body: str) -> Fraction:
    found = json.loads(body).get("world", {}) if body else {}
    return Fraction(0) if found.get("stopped") else Fraction(found.get("fraction", "1"))


def _runs(connection: Connection, worlds: Collection[str]) -> list[RunFact]:
    trades = defaultdict[str, list[TradeFact]](list)
    for row in _rows(connection, "SELECT * FROM rebalancing_trade ORDER BY run_id, number"):
        trades[row["run_id"]].append(
            TradeFact(
                place=(row["world_id"], row["strategy_id"], row["account"], row["symbol"]),
                quantity=Decimal(row["quantity"]),
                crossed=Decimal(row["crossed"]),
                filled=Decimal(row["filled"] or 0),
                state=row["state"],
                order_id=row["order_id"],
                reason=row["reason"],
            )
        )
    return [
        RunFact(
            run_id=row["run_id"],
            changes={
                item["world_id"]: (Decimal(item["before"]), Decimal(item["after"]))
                for item in json.loads(row["body"])["request"]["worlds"]
            },
            outcome=row["outcome"],
            locked_at=row["locked_at"] or "",
            ended_at=row["ended_at"] or "",
            planned=_planned(json.loads(row["plan"])),
            trades=trades[row["run_id"]],
        )
        for row in _rows(connection, "SELECT * FROM rebalancing ORDER BY requested_at")
        if set(json.loads(row["worlds"])) & set(worlds)
    ]


def _planned(plan: Any) -> dict[Place, Decimal]:
    """What a plan gives each strategy, ordered or not. (Any: JSON.)"""
    found = defaultdict[Place, Decimal](Decimal)
    worlds = plan["per_world"].values()
    for change in [item for world in worlds for item in (*world["deltas"], *world["dropped"])]:
        for part in change["parts"]:
            place = (part["world_id"], part["strategy_id"], change["venue"], change["symbol"])
            found[place] += Decimal(part["quantity"])
    return found


def _log(connection: Connection, world: str) -> list[LogFact]:
    found = []
    rows = _rows(connection, "SELECT * FROM order_log WHERE world_id = :w ORDER BY seq", w=world)
    for row in rows:
        body = json.loads(row["body"]) if row["body"] else {}
        fills = [(fill["fill_id"], Decimal(fill["quantity"])) for fill in body.get("fills", ())]
        found.append(LogFact(world, row["at"], row["kind"], row["ref"], body.get("origin", ""), fills))
    return found


def _theirs(found: Any, worlds: Collection[str]) -> dict[str, TheirOrder]:
    return {
        ref: TheirOrder(
            world=order["order"]["world_id"],
            strategy=order["order"]["strategy_id"],
            symbol=order["order"]["symbol"],
            sign=1 if order["order"]["side"] == "buy" else -1,
            quantity=Decimal(order["order"]["quantity"]),
            fills={fill["fill_id"]: Decimal(fill["quantity"]) for fill in order["fills"]},
        )
        for ref, order in found["orders"].items()
        if order["order"]["world_id"] in worlds
    }
