"""A running strategy's targets: what it wants to hold of each symbol, until the fence has taken them.

A target is sent with each of its bars, and again when the gate opens and when the world's epoch, the
strategy's activation or its session has changed: the fence then orders what is missing. So a strategy that
starts in the middle, or goes on after a halt or a gap, gets to what it says. A target that is refused is sent
again after a pause that doubles. None waits in a queue: only the newest of each symbol counts.
"""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from pydantic import ValidationError

from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.durations import retry_pause_s
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import order_id_prefix
from qmtl_sdk.contracts.refusals import REFUSALS
from qmtl_sdk.contracts.targets import Target, TargetUnit, TargetVerdict
from qmtl_sdk.runtime.activation import OrderGate
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.routes.running import SessionKey
from qmtl_sdk.runtime.withheld import RETRIED

BATCH_SIZE = 200
"""Targets per request."""

# Seconds before a refused target is sent again; they double with each refusal.
_RETRY_S = 1.0

# Symbols that a report on refused targets names.
_NAMED = 3

# Seconds between two attempts at most.
_RETRY_LIMIT_S = 300.0


@dataclass(frozen=True)
class TargetIntent:
    """What a publisher node wants of a symbol at a close. Without `tradable`, nothing is ordered for it."""

    symbol: str
    close: datetime
    unit: TargetUnit
    value: Decimal
    price: Decimal | None
    tradable: bool = True


@dataclass
class _Waiting:
    """A target, the state in which the fence has taken it, and its refusals since."""

    intent: TargetIntent
    taken: tuple[object, ...] | None = None
    refusals: int = 0
    refused_for: str = ""
    next_at: float = 0.0


class TargetPublisher:
    """Holds the newest target of each symbol, and sends those that the fence has not taken.

    `set` is called by the strategy's thread, `send` by the publisher's.
    """

    def __init__(
        self,
        client: GatewayClient,
        gate: OrderGate,
        world_id: str,
        strategy_id: str,
        session: Callable[[], SessionKey],
    ) -> None:
        self._client = client
        self._gate = gate
        self._world_id = world_id
        self._strategy_id = strategy_id
        self._session = session
        self._mutex = threading.Lock()
        self._waiting: dict[str, _Waiting] = {}
        self._numbers = itertools.count()
        self.blocked: Counter[str] = Counter()

    def set(self, intents: Iterable[TargetIntent]) -> None:
        """Replace the targets of these symbols."""
        with self._mutex:
            for intent in intents:
                before = self._waiting.get(intent.symbol)
                item = _Waiting(intent)
                if before is not None and _wants(before.intent) == _wants(intent):
                    item.refusals, item.refused_for = before.refusals, before.refused_for
                    item.next_at = before.next_at  # it would be refused again as soon
                self._waiting[intent.symbol] = item

    def clear(self) -> None:
        """Forget all targets, as when the strategy moves to another domain."""
        with self._mutex:
            self._waiting.clear()

    def refused(self) -> tuple[int, str]:
        """Return how many targets the fence has refused and not taken since, and why most of them."""
        with self._mutex:
            found = [item for item in self._waiting.values() if item.refusals and item.intent.tradable]
        if not found:
            return 0, ""
        ((reason, _),) = Counter(item.refused_for for item in found).most_common(1)
        symbols = [item.intent.symbol for item in found if item.refused_for == reason]
        more = ", …" if len(symbols) > _NAMED else ""
        return len(found), f"{', '.join(symbols[:_NAMED])}{more}: {reason}"

    def due(self) -> list[_Waiting]:
        """List targets that are to be sent now, none where the gate is closed."""
        if not self._waiting or self._gate.reason:
            return []
        state, now = self._state(), time.monotonic()
        with self._mutex:
            return [
                item
                for item in self._waiting.values()
                if item.intent.tradable and item.taken != state and item.next_at <= now
            ]

    def send(self) -> list[tuple[Target, TargetVerdict]]:
        """Send the targets that are due; return them with their verdicts.

        Raises QmtlError where no Gateway answers: they are then due again.
        """
        waiting = self.due()[:BATCH_SIZE]
        if not waiting:
            return []
        state, session = self._state(), self._session()
        built = [(item, target) for item in waiting if (target := self._target(item, session)) is not None]
        if not built:
            return []
        try:
            verdicts = self._client.publish_targets([target for _, target in built], session, patience_s=0.0)
        except QmtlError as error:
            if error.code in RETRIED:
                raise
            self.blocked[error.code] += len(built)
            for item, _ in built:
                _refused(item, f"the Gateway refused the request: {error.code}")
            return []
        for (item, _), verdict in zip(built, verdicts, strict=True):
            if verdict.accepted:
                item.taken, item.refusals = state, 0
            else:
                _refused(item, REFUSALS[verdict.reason] if verdict.reason else "")
        return [(target, verdict) for (_, target), verdict in zip(built, verdicts, strict=True)]

    def _state(self) -> tuple[object, ...]:
        """Return what a target is sent again for when it changes."""
        manager = self._gate.manager
        activation = manager.activation
        etag = activation.etag if activation else ""
        return (manager.epoch, etag, self._session().session_id, self._gate.domain)

    def _target(self, item: _Waiting, session: SessionKey) -> Target | None:
        """Build a target; count and put off one that no `Target` can hold."""
        intent, domain = item.intent, self._gate.domain
        if domain not in (Domain.DRYRUN, Domain.LIVE):
            _refused(item, f"{domain} has no orders")  # or it would be due again at once
            return None
        number = {"session": session.session_id, "number": next(self._numbers)}
        prefix = order_id_prefix(self._world_id, self._strategy_id)
        try:
            return Target(
                order_id=prefix + hash_of(number).removeprefix("blake3:")[:32],
                world_id=self._world_id,
                strategy_id=self._strategy_id,
                session_id=session.session_id,
                execution_domain=domain,
                epoch=self._gate.manager.epoch,
                symbol=intent.symbol,
                reference_price=intent.price,
                decided_at=intent.close,
                unit=intent.unit,
                value=intent.value,
            )
        except ValidationError as error:
            first = error.errors()[0]
            why = f"no target can hold it: {'.'.join(map(str, first['loc']))}: {first['msg']}"
            self.blocked[why] += 1
            _refused(item, why)
            return None


def _wants(intent: TargetIntent) -> tuple[object, ...]:
    return (intent.unit, intent.value, intent.tradable)


def _refused(item: _Waiting, reason: str) -> None:
    item.taken = None
    item.refusals += 1
    item.refused_for = reason
    item.next_at = time.monotonic() + retry_pause_s(item.refusals, _RETRY_S, _RETRY_LIMIT_S)
