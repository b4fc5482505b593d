"""Requests to flatten: close what one strategy of a world holds, or what all of them do.

A request is carried out once, whatever happens to its answer: its id names it in its world.
"""

from datetime import timedelta

from sqlalchemy import Connection, func, insert, select

from activities.fence.flatten_remains import left_behind, remains_of
from activities.fence.flattening import begin_flattens, continue_flattens
from activities.fence.flattening_rows import flattening_rows, worlds_due
from activities.fence.halts import HALT_WAIT_S
from activities.fence.state import locked_fence
from activities.fence.strategy_halts import bound_strategy
from activities.order_settings import Accounts
from activities.storage.database import Database
from activities.storage.tables import FenceRow, FlattenRow, ProcessRow
from activities.storage.transactions import (
    LockHeldError,
    RecordedChange,
    Transaction,
    table_of,
    utc_before,
    utc_now,
)
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.flattening import FlattenOrder, FlattenRequest, FlattenResult, Unflattened

_flatten = table_of(FlattenRow)
_process = table_of(ProcessRow)

# Milliseconds that the continuation of flattens waits for the fence of a world: there is a next turn.
_FENCE_WAIT_MS = 200


class SqlFlattens:
    """Carries out requests to flatten, and continues flattens whose time has come."""

    def __init__(self, database: Database, accounts: Accounts, no_router_after_s: float) -> None:
        """`no_router_after_s`: seconds without a working order router after which an answer says so."""
        self._database = database
        self._accounts = accounts
        self._no_router_after = timedelta(seconds=no_router_after_s)

    def request(
        self, world_id: str, request: FlattenRequest, actor: str, wait_s: float = HALT_WAIT_S
    ) -> FlattenResult:
        """Close what strategies hold, by orders that only reduce. Returns what was done, and what remains.

        It works in a world or for a strategy that is halted, frozen or inactive. A request that is repeated
        does nothing again; what remains is as of now. Raises QmtlError: E_WORLD_UNKNOWN; E_STRATEGY_UNKNOWN;
        E_FLATTEN_REUSED where the id was used for another strategy; E_UNAVAILABLE where another transaction
        holds the fence for `wait_s`.
        """
        with self._database.write(actor) as tx:
            tx.limit_lock_waits(wait_s)
            fence = locked_fence(tx, world_id)
            strategy_id = ""
            if request.strategy is not None:
                strategy_id = bound_strategy(tx.session, world_id, request.strategy).strategy_id
            strategies = [strategy_id] if strategy_id else None
            mine = (_flatten.c.world_id == world_id, _flatten.c.flatten_id == request.flatten_id)
            known = tx.connection.execute(select(_flatten).where(*mine)).first()
            if known is None:
                answer = self._begin(tx, fence, request, strategy_id, actor)
            elif known.strategy_id != strategy_id:
                raise QmtlError(
                    "E_FLATTEN_REUSED",
                    f"{request.flatten_id} was requested before for "
                    f"{known.strategy_id[:40] or 'the whole world'}",
                    "an id is used once; use a new one for another request",
                )
            else:
                answer = FlattenResult.model_validate_json(known.answer)
            remains = remains_of(tx.connection, world_id, strategies, self._accounts)
            note = ""
            if any(item.under_way for item in remains) and not self._router_works(tx.connection):
                note = "no order router works: the orders wait for the next one (qmtl status)"
            return answer.model_copy(update={"remains": remains, "note": note})

    def under_way(self, world_id: str) -> int:
        """Count the strategies of a world whose positions are being closed."""
        with self._database.read() as session:
            return len({row.strategy_id for row in flattening_rows(session.connection(), world_id, None)})

    def left_behind(self, world_id: str) -> tuple[Unflattened, ...]:
        """Return what flattens of a world have left: less than a lot, or symbols whose orders failed."""
        with self._database.read() as session:
            return left_behind(session.connection(), world_id)

    def continue_due(self) -> None:
        """Continue the flattens whose time has come. A world whose fence is held is left to the next turn.

        An error of one world stops no other; the first is raised.
        """
        with self._database.read() as session:
            worlds = worlds_due(session.connection())
        failures = list[Exception]()
        for world_id in worlds:
            try:
                with self._database.write("flatten", bookkeeping=True) as tx:
                    continue_flattens(tx, locked_fence(tx, world_id, _FENCE_WAIT_MS))
            except LockHeldError:
                continue
            except Exception as error:  # whatever one world's rows hold, the others go on
                failures.append(error)
        if failures:
            raise failures[0]

    def _begin(
        self, tx: Transaction, fence: FenceRow, request: FlattenRequest, strategy_id: str, actor: str
    ) -> FlattenResult:
        world_id, strategies = fence.world_id, [strategy_id] if strategy_id else None
        tx.record(  # before what follows from it: where less than a lot is held, it ends at once
            RecordedChange(
                "flatten.requested",
                world_id,
                request.flatten_id,
                after={"strategy_id": strategy_id, "reason": request.reason},
                correlation_id=request.flatten_id,
            )
        )
        begun = begin_flattens(tx, fence, request.flatten_id, self._accounts, strategies)
        answer = FlattenResult(
            world_id=world_id,
            flatten_id=request.flatten_id,
            **begun.stopped.model_dump(),
            ordered=tuple(
                FlattenOrder(
                    order_id=order.order_id,
                    strategy_id=order.strategy_id,
                    execution_domain=order.execution_domain,
                    symbol=order.symbol,
                    quantity=order.signed,
                )
                for order in begun.ordered
            ),
        )
        row = {
            "world_id": world_id,
            "flatten_id": request.flatten_id,
            "strategy_id": strategy_id,
            "actor": actor,
            "reason": request.reason,
            "at": utc_now(),
            "answer": answer.model_dump_json(),
        }
        tx.connection.execute(insert(_flatten), row)
        return answer

    def _router_works(self, connection: Connection) -> bool:
        working = (_process.c.name == "router", _process.c.state != "standby")
        worked_at = connection.execute(select(func.max(_process.c.worked_at)).where(*working)).scalar()
        return (worked_at or "") > utc_before(self._no_router_after)
