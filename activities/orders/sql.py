"""The order log in the database, behind the fence.

1. Orders come in from many threads; whoever is first takes what waits along, so that one transaction serves many (`_Together`).
2. The transaction holds each world's fence in share, reads the fence row, activations and sessions, asks `fence.refusal`, and writes a row for every order, accepted or refused.
3. An order id is answered once for ever: sent again it gets the same answer.

The order log is its own audit trail: rows are only ever added, and changes of the fence stand between the orders.
"""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, select, text
from sqlmodel import SQLModel, col

from activities.orders.fence import Activation, Session, Sight, Tally, World, refusal
from activities.storage.database import Database, Transaction, utc_now
from activities.storage.tables import FenceRow, OpenOrder
from activities.worlds.gate import halt
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import Fill, Order, OrderRecord, OrderVerdict, Refusal

ACCEPTED, REFUSED, FILLED, CANCELLED = "accepted", "refused", "filled", "cancelled"
_AT_ONCE, _GATHER_S = 500, 0.001
_tables = SQLModel.metadata.tables
_fences, _activations, _sessions, _log, _open = (_tables[name] for name in ("fence", "activation", "session", "order_log", "open_order"))
# The words of the partial indexes, as they stand there: with parameters in their place neither database would use them.
_VERDICT, _ENDED = text("order_log.kind IN ('accepted', 'refused')"), text("order_log.kind IN ('filled', 'cancelled')")
_EARLIER = select(_log.c.ref, _log.c.kind, _log.c.reason, _log.c.epoch, _log.c.body).where(_log.c.ref.in_(bindparam("ids", expanding=True)), _VERDICT)
_FENCES = select(_fences).where(_fences.c.world_id.in_(bindparam("worlds", expanding=True)))
_ACTIVATIONS = select(_activations.c.world_id, _activations.c.strategy_id, _activations.c.active, _activations.c.mode).where(
    _activations.c.world_id.in_(bindparam("worlds", expanding=True)), _activations.c.strategy_id.in_(bindparam("strategies", expanding=True))
)
_SESSIONS = select(_sessions.c.session_id, _sessions.c.world_id, _sessions.c.strategy_id, _sessions.c.execution_domain, _sessions.c.expires_at, _sessions.c.ended_at).where(
    _sessions.c.session_id.in_(bindparam("sessions", expanding=True))
)
_WORLD_FIELDS = tuple(World.__dataclass_fields__)


class SqlOrderStore:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._together, self._counted = _Together(self._answer), set[str]()

    def publish(self, orders: Sequence[Order]) -> list[OrderVerdict]:
        """A verdict for each order, in the same order. Raises QmtlError: E_WORLD_UNKNOWN, E_ORDER_REUSED where an id was used for another order; then none of them was taken."""
        return self._together(orders)

    def publish_all(self, requests: Sequence[Sequence[Order]]) -> list[list[OrderVerdict] | QmtlError]:
        """Several requests at once: the verdicts of each, or why it was refused as a whole."""
        tickets = [_Ticket(orders) for orders in requests]
        try:
            self._together.serve(tickets)
        except QmtlError as error:  # the store can't be reached: nobody was answered
            return [error for _ in tickets]
        return [ticket.error if isinstance(ticket.error, QmtlError) else ticket.verdicts for ticket in tickets]

    def _answer(self, tickets: "Sequence[_Ticket]") -> None:
        while True:
            try:
                return self._attempt(tickets)
            except _CountedError:
                continue  # once more, and now it is known

    def _attempt(self, tickets: "Sequence[_Ticket]") -> None:
        with self._database.write("fence", bookkeeping=True) as tx:
            orders = {order.order_id: order for ticket in tickets for order in ticket.orders}
            worlds = sorted({order.world_id for order in orders.values()})
            connection = tx.session.connection()
            for world_id in worlds:
                (tx.lock if world_id in self._counted else tx.share)(f"fence:{world_id}")
            fences = {row.world_id: World(**{name: getattr(row, name) for name in _WORLD_FIELDS}) for row in connection.execute(_FENCES, {"worlds": worlds})}
            counted = {world_id for world_id, world in fences.items() if world.max_orders is not None or world.max_refused is not None}
            if not counted <= self._counted:  # its circuit breaker was set since: whoever counts holds the fence alone
                self._counted |= counted
                raise _CountedError
            earlier = {row.ref: row for row in connection.execute(_EARLIER, {"ids": sorted(orders)})}
            good = [ticket for ticket in tickets if not ticket.refuse(earlier, orders, fences)]
            fresh = {order.order_id: order for ticket in good for order in ticket.orders if order.order_id not in earlier}
            verdicts = {ref: _again(row, fences[orders[ref].world_id].epoch) for ref, row in earlier.items()}
            verdicts |= self._judge(tx, connection, fresh, fences)
            for ticket in good:
                ticket.verdicts = [verdicts[order.order_id] for order in ticket.orders]

    def _judge(self, tx: Transaction, connection: Connection, orders: dict[str, Order], fences: dict[str, World]) -> dict[str, OrderVerdict]:
        """Decide about new orders and write each down."""
        if not orders:
            return {}
        of = orders.values()
        asked = {"worlds": sorted({order.world_id for order in of}), "strategies": sorted({order.strategy_id for order in of})}
        activations = {(row.world_id, row.strategy_id): Activation(row.active, row.mode) for row in connection.execute(_ACTIVATIONS, asked)}
        found = connection.execute(_SESSIONS, {"sessions": sorted({order.session_id for order in of})})
        sessions = {row.session_id: Session(row.world_id, row.strategy_id, row.execution_domain, row.expires_at, row.ended_at is not None) for row in found}
        tallies = {world_id: Tally(world) for world_id, world in fences.items()}
        verdicts, rows, now = {}, [], utc_now()
        for order in sorted(of, key=lambda order: order.order_id):  # one order of locks in the index, whoever writes
            world = fences[order.world_id]
            reason = refusal(Sight(order, world, activations.get((order.world_id, order.strategy_id)), sessions.get(order.session_id), now))
            tallies[order.world_id].count(reason, now)
            verdicts[order.order_id] = OrderVerdict(order_id=order.order_id, accepted=reason is None, reason=reason, epoch=world.epoch)
            body = order.model_dump_json()
            rows.append(
                {"at": now, "world_id": order.world_id, "kind": REFUSED if reason else ACCEPTED, "ref": order.order_id, "epoch": order.epoch, "strategy_id": order.strategy_id}
                | {"reason": reason.value if reason else "", "body": body}
            )
        written = set(connection.execute(self._database.insert(_log).on_conflict_do_nothing().returning(_log.c.ref), rows).scalars())
        opened = [{"order_id": row["ref"], "world_id": row["world_id"], "accepted_at": now} for row in rows if row["kind"] == ACCEPTED and row["ref"] in written]
        if opened:
            connection.execute(_open.insert(), opened)
        if len(written) < len(rows):  # another Gateway was quicker with the same ids: what it was told stands
            missing = sorted(set(orders) - written)
            verdicts |= {row.ref: _again(row, fences[orders[row.ref].world_id].epoch) for row in connection.execute(_EARLIER, {"ids": missing})}
        self._count(tx, fences, tallies)
        return verdicts

    @staticmethod
    def _count(tx: Transaction, fences: dict[str, World], tallies: dict[str, Tally]) -> None:
        """Keep the counts of worlds with a circuit breaker, whose fence this transaction holds alone, and halt those where it has tripped."""
        for world_id, world in fences.items():
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
            accepted = {row.ref: row for row in connection.execute(select(_log.c.ref, _log.c.world_id, _log.c.epoch, _log.c.strategy_id).where(_log.c.ref.in_(ids), _VERDICT, _log.c.kind == ACCEPTED))}
            rows = [
                {"at": now, "world_id": was.world_id, "kind": FILLED, "ref": fill.order_id, "epoch": was.epoch, "strategy_id": was.strategy_id, "reason": "", "body": fill.model_dump_json()}
                for fill in sorted(fills, key=lambda fill: fill.order_id)
                if (was := accepted.get(fill.order_id)) is not None
            ]
            if rows:
                connection.execute(self._database.insert(_log).on_conflict_do_nothing(), rows)
            connection.execute(delete(OpenOrder).where(col(OpenOrder.order_id).in_(ids)))

    def waiting(self, limit: int) -> list[tuple[Order, datetime]]:
        """Accepted orders that no venue has ended, oldest first, with the time of their acceptance."""
        query = select(_log.c.body, _open.c.accepted_at).join_from(_open, _log, (_log.c.ref == _open.c.order_id) & _VERDICT & (_log.c.kind == ACCEPTED)).order_by(_open.c.accepted_at).limit(limit)
        with self._database.read() as session:
            return [(Order.model_validate_json(body), datetime.fromisoformat(at)) for body, at in session.connection().execute(query)]

    def open_orders(self, world_id: str) -> int:
        with self._database.read() as session:
            return int(session.connection().execute(select(func.count()).where(_open.c.world_id == world_id)).scalar_one())

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
        query = select(_log.c.kind, _log.c.reason, func.count()).where(_log.c.world_id == world_id, _VERDICT).group_by(_log.c.kind, _log.c.reason)
        with self._database.read() as session:
            found: defaultdict[str, int] = defaultdict(int)
            for kind, reason, count in session.connection().execute(query):
                found[reason if kind == REFUSED else ACCEPTED] += count
            return dict(found)


def _again(row: Any, epoch: int) -> OrderVerdict:
    """The answer that an order was given before. (Any: a row of the order log.)"""
    return OrderVerdict(order_id=row.ref, accepted=row.kind == ACCEPTED, reason=Refusal(row.reason) if row.reason else None, epoch=epoch)


def _record(row: Any, ended: Any) -> OrderRecord:
    """(Any: rows of the order log.)"""
    state = "refused" if row.kind == REFUSED else ended.kind if ended else "open"
    fill = Fill.model_validate_json(ended.body) if ended is not None and ended.kind == FILLED else None
    return OrderRecord.model_validate(
        {"seq": row.seq, "at": row.at, "order": Order.model_validate_json(row.body), "accepted": row.kind == ACCEPTED, "reason": row.reason or None, "state": state, "fill": fill}
    )


class _CountedError(Exception):
    """A world has a circuit breaker, and its fence was only shared."""


class _Ticket:
    """What one caller asks, and what it is answered. `news`: it is done, or its thread is the one that leads now."""

    __slots__ = ("done", "error", "news", "orders", "verdicts")

    def __init__(self, orders: Sequence[Order]) -> None:
        self.orders, self.done, self.news = orders, False, threading.Event()
        self.verdicts: list[OrderVerdict] = []
        self.error: BaseException | None = None

    def refuse(self, earlier: dict[str, Any], orders: dict[str, Order], fences: dict[str, World]) -> bool:
        """Whether the whole request is refused; then `error` says why. (Any: rows of the order log.)"""
        for order in self.orders:
            if order.world_id not in fences:
                self.error = QmtlError("E_WORLD_UNKNOWN", f"there is no world {order.world_id!r}", "qmtl world list prints them")
            elif orders[order.order_id] != order or (order.order_id in earlier and Order.model_validate_json(earlier[order.order_id].body) != order):
                self.error = QmtlError("E_ORDER_REUSED", f"the order id {order.order_id[:64]} was used for another order", "give every order an id of its own")
        return self.error is not None


class _Together:
    """Serves the callers of several threads with one call. One leads: it waits a moment for as many as came last time, serves them together, and hands the lead to who came meanwhile."""

    def __init__(self, serve: Callable[[Sequence[_Ticket]], None]) -> None:
        self._serve, self._waiting = serve, deque[_Ticket]()
        self._mutex, self._led, self._last = threading.Lock(), False, 1

    def __call__(self, orders: Sequence[Order]) -> list[OrderVerdict]:
        ticket = _Ticket(orders)
        self.serve([ticket])
        if ticket.error is not None:
            raise ticket.error
        return ticket.verdicts

    def serve(self, tickets: Sequence[_Ticket]) -> None:
        """Until all of them are done."""
        with self._mutex:
            self._waiting += tickets
            leads, self._led = not self._led, True
        for ticket in tickets:
            while not ticket.done:
                if leads:
                    leads = self._lead()
                else:
                    ticket.news.wait()
                    ticket.news.clear()
                    leads = not ticket.done
        if leads:
            self._hand_over()

    def _lead(self) -> bool:
        """Serve a batch. True: the caller leads still."""
        until = time.perf_counter() + _GATHER_S
        while len(self._waiting) < self._last and time.perf_counter() < until:
            time.sleep(_GATHER_S / 20)  # lets those run who were answered a moment ago
        batch, count = list[_Ticket](), 0
        while self._waiting and (not batch or count + len(self._waiting[0].orders) <= _AT_ONCE):
            count += len(self._waiting[0].orders)
            batch.append(self._waiting.popleft())
        self._last = len(batch)
        try:
            self._serve(batch)
        except BaseException as error:  # everyone whom it concerns is told, the leader among them
            for ticket in batch:
                ticket.error = ticket.error or error
        for ticket in batch:
            ticket.done = True
            ticket.news.set()
        return True

    def _hand_over(self) -> None:
        with self._mutex:
            if self._waiting:
                self._waiting[0].news.set()
            else:
                self._led = False
