"""The order log in the database, behind the fence.

1. Orders come in from many callers; one transaction serves all that came while the one before it was at work.
2. The transaction holds each world's fence in share, reads the fence row, activations and sessions, asks `fence.refusal`, and writes a row for every order, accepted or refused.
3. An order id is answered once for ever: sent again it gets the same answer.

The order log is its own audit trail: rows are only ever added, and changes of the fence stand between the orders.
"""

import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, func, select, text
from sqlmodel import SQLModel, col

from activities.orders.fence import BreakerCount, OrderContext, World, refusal
from activities.orders.rows import ACCEPTED, FILLED, REFUSED, FenceSnapshot, LogLine, order_rows
from activities.storage.database import Database, Transaction, utc_now
from activities.storage.tables import FenceRow, OpenOrderRow
from activities.worlds.gate import halt
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import Fill, Order, OrderRecord, OrderVerdict, Refusal

_AT_ONCE, _GATHER_S = 500, 0.001
_log, _open = (SQLModel.metadata.tables[name] for name in ("order_log", "open_order"))
# The words of the partial indexes, as they stand there (see rows.py).
_VERDICT, _ENDED = (
    text("order_log.kind IN ('accepted', 'refused')"),
    text("order_log.kind IN ('filled', 'cancelled')"),
)


class SqlOrderStore:
    def __init__(self, database: Database) -> None:
        self._database, self._rows, self._counted = database, order_rows(database), set[str]()
        self._waiting, self._mutex, self._serving, self._last, self._expected = (
            deque[_Request](),
            threading.Lock(),
            False,
            1,
            1,
        )
        self._all_there = threading.Condition(self._mutex)
        self._threads = ThreadPoolExecutor(1, "fence")

    def publish(self, orders: Sequence[Order]) -> list[OrderVerdict]:
        """A verdict for each order, in the same order. Raises QmtlError: E_WORLD_UNKNOWN, E_ORDER_REUSED where an id was used for another order; then none of them was taken."""
        return self.submit(orders).result()

    def submit(self, orders: Sequence[Order]) -> "Future[list[OrderVerdict]]":
        """The same, without waiting for it."""
        request = _Request(orders)
        with self._mutex:
            self._waiting.append(request)
            if len(self._waiting) >= self._expected:
                self._all_there.notify()
            if not self._serving:
                self._serving = True
                self._threads.submit(self._serve)
        return request.answer

    def _serve(self) -> None:
        """Answer until nobody waits."""
        while batch := self._next():
            self._told(batch)

    def _told(self, batch: "Sequence[_Request]") -> None:
        """Answer these, each with its verdicts or the reason why there are none. What no database can hold is refused alone: it costs nobody else their answer."""
        try:
            self._answer(batch)
        except BaseException as error:  # everyone whom it concerns is told
            if len(batch) > 1 and isinstance(error, QmtlError) and error.status < 500:
                for request in batch:
                    self._told([request])
                return
            for request in batch:
                request.error = error
        for request in batch:
            request.tell()

    def _next(self) -> "list[_Request]":
        """Who is served together: those who wait, and those who were answered a moment ago and come again. Without them two halves would take turns, each at the price of all."""
        batch, count = list[_Request](), 0
        with self._mutex:
            self._expected = self._last + len(self._waiting)
            self._all_there.wait_for(lambda: len(self._waiting) >= self._expected, _GATHER_S)
            while self._waiting and (not batch or count + len(self._waiting[0].orders) <= _AT_ONCE):
                request = self._waiting.popleft()
                if request.answer.set_running_or_notify_cancel():  # else its caller has gone
                    count += len(request.orders)
                    batch.append(request)
            self._serving = bool(batch)
        self._last = len(batch) or 1
        return batch

    def _answer(self, requests: "Sequence[_Request]") -> None:
        while True:
            try:
                return self._attempt(requests)
            except _CountedError:
                continue  # once more, and now it is known

    def _attempt(self, requests: "Sequence[_Request]") -> None:
        with self._database.write("fence", bookkeeping=True) as tx:
            orders = {order.order_id: order for request in requests for order in request.orders}
            connection = tx.session.connection()
            seen = self._rows.look(connection, orders.values(), self._counted)
            counted = {
                world_id
                for world_id, world in seen.worlds.items()
                if world.max_orders is not None or world.max_refused is not None
            }
            if (
                not counted <= self._counted
            ):  # its circuit breaker was set since: whoever counts holds the fence alone
                self._counted |= counted
                raise _CountedError
            good = [request for request in requests if not request.refuse(seen, orders)]
            asked = [order for request in good for order in request.orders]
            verdicts = {
                order.order_id: _again(seen.earlier[order.order_id], seen)
                for order in asked
                if order.order_id in seen.earlier
            }
            verdicts |= self._judge(
                tx,
                connection,
                {order.order_id: order for order in asked if order.order_id not in seen.earlier},
                seen,
            )
            for request in good:
                request.verdicts = [verdicts[order.order_id] for order in request.orders]

    def _judge(
        self, tx: Transaction, connection: Connection, orders: dict[str, Order], seen: FenceSnapshot
    ) -> dict[str, OrderVerdict]:
        """Decide about new orders and write each down."""
        if not orders:
            return {}
        tallies = {world_id: BreakerCount(world) for world_id, world in seen.worlds.items()}
        verdicts, lines, now = {}, [], utc_now()
        for _, order in sorted(orders.items()):  # one order of locks in the index, whoever writes
            world = seen.worlds[order.world_id]
            reason = refusal(
                OrderContext(
                    order,
                    world,
                    seen.activations.get((order.world_id, order.strategy_id)),
                    seen.sessions.get(order.session_id),
                    now,
                )
            )
            tallies[order.world_id].count(reason, now)
            verdicts[order.order_id] = OrderVerdict(
                order_id=order.order_id, accepted=reason is None, reason=reason, epoch=world.epoch
            )
            kind, why = (REFUSED, reason.value) if reason else (ACCEPTED, "")
            lines.append(
                LogLine(
                    now,
                    order.world_id,
                    kind,
                    order.order_id,
                    order.epoch,
                    order.strategy_id,
                    why,
                    order.model_dump_json(),
                )
            )
        written = self._rows.keep(connection, lines)
        if len(written) < len(
            lines
        ):  # another Gateway was quicker with the same ids: what it was told stands
            earlier = self._rows.earlier(connection, sorted(set(orders) - written))
            verdicts |= {order_id: _again(line, seen) for order_id, line in earlier.items()}
        self._count(tx, seen.worlds, tallies)
        return verdicts

    @staticmethod
    def _count(tx: Transaction, worlds: dict[str, World], tallies: dict[str, BreakerCount]) -> None:
        """Keep the counts of worlds with a circuit breaker, whose fence this transaction holds alone, and halt those where it has tripped."""
        for world_id, world in worlds.items():
            if world.max_orders is None and world.max_refused is None:
                continue
            row = tx.session.get_one(FenceRow, world_id, populate_existing=True)
            row.minute, row.orders, row.refused = world.minute, world.orders, world.refused
            tx.session.add(row)
            if tallies[world_id].tripped and not row.halted:
                halt(tx, row, tallies[world_id].tripped)

    # what becomes of accepted orders

    def filled(self, fills: Sequence[Fill]) -> None:
        """Note what venues have filled. Noting it twice is noting it once."""
        if not fills:
            return
        with self._database.write("venue", bookkeeping=True) as tx:
            connection, now = tx.session.connection(), utc_now()
            ids = [fill.order_id for fill in fills]
            accepted = {
                row.ref: row
                for row in connection.execute(
                    select(_log.c.ref, _log.c.world_id, _log.c.epoch, _log.c.strategy_id).where(
                        _log.c.ref.in_(ids), _VERDICT, _log.c.kind == ACCEPTED
                    )
                )
            }
            rows = [
                {
                    "at": now,
                    "world_id": was.world_id,
                    "kind": FILLED,
                    "ref": fill.order_id,
                    "epoch": was.epoch,
                    "strategy_id": was.strategy_id,
                    "reason": "",
                    "body": fill.model_dump_json(),
                }
                for fill in sorted(fills, key=lambda fill: fill.order_id)
                if (was := accepted.get(fill.order_id)) is not None
            ]
            if rows:
                connection.execute(self._database.insert(_log).on_conflict_do_nothing(), rows)
            connection.execute(delete(OpenOrderRow).where(col(OpenOrderRow.order_id).in_(ids)))

    def waiting(self, limit: int) -> list[tuple[Order, datetime]]:
        """Accepted orders that no venue has ended, oldest first, with the time of their acceptance."""
        query = (
            select(_log.c.body, _open.c.accepted_at)
            .join_from(_open, _log, (_log.c.ref == _open.c.order_id) & _VERDICT & (_log.c.kind == ACCEPTED))
            .order_by(_open.c.accepted_at)
            .limit(limit)
        )
        with self._database.read() as session:
            return [
                (Order.model_validate_json(body), datetime.fromisoformat(at))
                for body, at in session.connection().execute(query)
            ]

    def open_orders(self, world_id: str) -> int:
        with self._database.read() as session:
            return int(
                session.connection()
                .execute(select(func.count()).where(_open.c.world_id == world_id))
                .scalar_one()
            )

    # the log

    def orders(self, world_id: str, after: int = 0, limit: int = 100, reason: str = "") -> list[OrderRecord]:
        """Orders of a world after a number of the log, oldest first; `reason`: only those refused for it."""
        query = select(_log).where(_log.c.world_id == world_id, _log.c.seq > after, _VERDICT)
        if reason:
            query = query.where(_log.c.reason == reason)
        with self._database.read() as session:
            connection = session.connection()
            rows = connection.execute(query.order_by(_log.c.seq).limit(limit)).all()
            ended = connection.execute(select(_log).where(_log.c.ref.in_([row.ref for row in rows]), _ENDED))
            by_ref = {row.ref: row for row in ended}
            return [_record(row, by_ref.get(row.ref)) for row in rows]

    def counts(self, world_id: str) -> dict[str, int]:
        """How many orders were accepted, and how many refused, by reason."""
        query = (
            select(_log.c.kind, _log.c.reason, func.count())
            .where(_log.c.world_id == world_id, _VERDICT)
            .group_by(_log.c.kind, _log.c.reason)
        )
        with self._database.read() as session:
            found: defaultdict[str, int] = defaultdict(int)
            for kind, reason, count in session.connection().execute(query):
                found[reason if kind == REFUSED else ACCEPTED] += count
            return dict(found)


def _again(line: LogLine, seen: FenceSnapshot) -> OrderVerdict:
    """The answer that an order was given before."""
    return OrderVerdict(
        order_id=line.ref,
        accepted=line.kind == ACCEPTED,
        reason=Refusal(line.reason) if line.reason else None,
        epoch=seen.worlds[line.world_id].epoch,
    )


def _record(row: Any, ended: Any) -> OrderRecord:
    """(Any: rows of the order log.)"""
    state = "refused" if row.kind == REFUSED else ended.kind if ended else "open"
    fill = Fill.model_validate_json(ended.body) if ended is not None and ended.kind == FILLED else None
    return OrderRecord.model_validate(
        {
            "seq": row.seq,
            "at": row.at,
            "order": Order.model_validate_json(row.body),
            "accepted": row.kind == ACCEPTED,
            "reason": row.reason or None,
            "state": state,
            "fill": fill,
        }
    )


class _CountedError(Exception):
    """A world has a circuit breaker, and its fence was only shared."""


class _Request:
    """What one caller asks, and what it will be answered: `verdicts`, or the `error` that the whole of it is refused with."""

    __slots__ = ("answer", "error", "orders", "verdicts")

    def __init__(self, orders: Sequence[Order]) -> None:
        self.orders, self.answer = orders, Future[list[OrderVerdict]]()
        self.verdicts: list[OrderVerdict] = []
        self.error: BaseException | None = None

    def refuse(self, seen: FenceSnapshot, orders: dict[str, Order]) -> bool:
        """Whether the whole request is refused."""
        for order in self.orders:
            earlier = seen.earlier.get(order.order_id)
            if order.world_id not in seen.worlds:
                self.error = QmtlError(
                    "E_WORLD_UNKNOWN", f"there is no world {order.world_id!r}", "qmtl world list prints them"
                )
            elif order != (
                orders[order.order_id] if earlier is None else Order.model_validate_json(earlier.body)
            ):
                self.error = QmtlError(
                    "E_ORDER_REUSED",
                    f"the order id {order.order_id[:64]} was used for another order",
                    "give every order an id of its own",
                )
        return self.error is not None

    def tell(self) -> None:
        if self.error is not None:
            self.answer.set_exception(self.error)
        else:
            self.answer.set_result(self.verdicts)
