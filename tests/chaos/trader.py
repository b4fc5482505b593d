"""A runner that does nothing but trade, in a process of its own, which may be killed.

Half of what it sends goes through the SDK's gate; the other half is rude: under epochs of before, in another
domain, for a session that has ended, while the gate is closed. It writes down every answer. With two
Gateways, it goes to the other one when one does not answer, and now and then sends orders to both.
"""

import itertools
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.decisions import WHOLE_WORLD
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.events import CloudEvent
from qmtl_sdk.contracts.orders import Order, OrderVerdict, order_id
from qmtl_sdk.contracts.sessions import SessionHeartbeat, SessionOpen
from qmtl_sdk.contracts.stream import Subscribe
from qmtl_sdk.runtime.activation import ActivationManager, OrderGate
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.orders import OrderIntent, OrderPublisher
from qmtl_sdk.runtime.routes.running import SessionKey
from qmtl_sdk.runtime.stream import StreamClient
from tests.support.order_checker import UNANSWERED

NONE = SessionKey("")

# Seconds without an answer after which orders count as unanswered: a Gateway that was killed fails at once,
# and one that waits for a fence says so within 10 s.
UNANSWERED_S = 30.0

# How many of the rude requests go to both Gateways at once.
TO_BOTH = 0.2


@dataclass
class Life:
    """What a rude order may be made of."""

    session: SessionKey = NONE
    ended: SessionKey = NONE
    shadow: SessionKey = NONE
    domain: str = "dryrun"


class AnyGateway(GatewayClient):
    """A client of several Gateways: it goes on with the next one when one does not answer.

    `unanswered` gets the orders of a request that was not answered within `UNANSWERED_S`.
    """

    def __init__(self, urls: Sequence[str], token: str, unanswered: Callable[[Order], None]) -> None:
        super().__init__(urls[0], token, away_limit_s=0.0, answer_limit_s=UNANSWERED_S)
        others = [GatewayClient(url, token, answer_limit_s=UNANSWERED_S)._http for url in urls[1:]]
        self._all = itertools.cycle([*others, self._http])
        self._unanswered = unanswered

    def _send(
        self, method: str, path: str, patience_s: float | None = None, **options: Any
    ) -> httpx.Response:
        try:
            return super()._send(method, path, patience_s, **options)
        except QmtlError as error:
            if error.code == "E_UNAVAILABLE":
                self._http = next(self._all)
            raise

    def publish_orders(
        self, orders: Sequence[Order], session: SessionKey, patience_s: float | None = None
    ) -> list[OrderVerdict]:
        began = time.monotonic()
        try:
            return super().publish_orders(orders, session, patience_s)
        except QmtlError:
            if time.monotonic() - began >= UNANSWERED_S:
                for order in orders:
                    self._unanswered(order)
            raise


class Trader:
    def __init__(
        self, urls: list[str], token: str, world: str, strategy: str, seed: int, diary: Path
    ) -> None:
        self._client = AnyGateway(urls, token, self._unanswered)
        self._both = [AnyGateway([url], token, self._unanswered) for url in urls]
        self._threads = ThreadPoolExecutor(len(urls), "both")
        self._world = world
        self._strategy = strategy
        self._rng = random.Random(seed)
        self._diary = diary.open("a")
        self._run = f"{seed}-{time.time_ns()}"
        self._n = 0
        self._life = Life()
        self._stream = StreamClient(
            [GatewayClient(url, token, away_limit_s=0.0) for url in urls],
            Subscribe(world_id=world, strategy_id=strategy),
            self._acknowledge,
        )
        self._manager = ActivationManager(self._stream, world, strategy)
        self._gate = OrderGate(self._manager)
        self._publisher = OrderPublisher(
            AnyGateway(urls, token, self._unanswered),
            self._gate,
            world,
            strategy,
            lambda: self._life.session,
            self._record_verdict,
        )
        self._epochs = [1]

    def main(self) -> None:
        self._stream.start()
        self._publisher.start()
        heartbeat_at = 0.0
        while True:
            if time.monotonic() > heartbeat_at:
                self._try(self._keep)
                heartbeat_at = time.monotonic() + 0.3
            self._n += 1
            # Without pause, but not ahead of what is answered: a backlog would be stale, and nothing else
            # would be tried.
            if len(self._publisher._orders) < 20:
                self._publisher.enqueue(
                    OrderIntent(self._run, self._n, datetime.now(UTC), "AAPL", 1.0, 100.0)
                )
            if self._n % 4 == 0:
                self._try(lambda: self._send([self._rude() for _ in range(4)]))
            time.sleep(0.002)

    def _keep(self) -> None:
        """Hold a session in the domain that the world has the strategy in.

        Now and then end it, and remember it.
        """
        domain = self._manager.domain
        moved = domain in (Domain.DRYRUN, Domain.LIVE) and domain.value != self._life.domain
        if self._life.session.session_id and (moved or self._rng.random() < 0.05):
            self._client.end_session(self._life.session, "chaos")
            self._life.ended, self._life.session = self._life.session, NONE
        if not self._life.session.session_id:
            grant = self._client.open_session(
                SessionOpen(world_id=self._world, strategy_id=self._strategy, runner="chaos")
            )
            self._life.session, self._life.domain = SessionKey.of(grant), grant.context.execution_domain.value
            self._gate.domain = grant.context.execution_domain
        else:
            self._client.session_heartbeat(self._life.session, SessionHeartbeat())

    def _rude(self) -> Order:
        """An order that its gate would keep back, mostly.

        With whatever is known of epochs, sessions and domains.
        """
        rng, epoch = self._rng, self._manager.epoch
        if epoch != self._epochs[-1]:
            self._epochs = [*self._epochs[-5:], epoch]
        self._n += 1
        session = rng.choice((self._life.session, self._life.session, self._life.session, self._life.ended))
        return self._order(
            epoch=rng.choice((epoch, epoch, epoch, rng.choice(self._epochs))),
            session_id=session.session_id,
            execution_domain=rng.choice(
                (self._life.domain, self._life.domain, self._life.domain, "dryrun", "live", "shadow")
            ),
        )

    def _order(self, **fields: object) -> Order:
        found = order_id(self._world, self._strategy, self._run, self._n, "AAPL", "rude")
        base = {
            "order_id": found,
            "world_id": self._world,
            "strategy_id": self._strategy,
            "symbol": "AAPL",
            "side": "buy",
            "quantity": "1",
            "reference_price": "100",
        }
        order = Order.model_validate({**base, **fields})
        if (
            order.execution_domain is Domain.SHADOW and self._rng.random() < 0.7
        ):  # as a runner in shadow would send it: with a session of its own
            return order.model_copy(update={"session_id": self._shadow_session().session_id})
        return order

    def _shadow_session(self) -> SessionKey:
        if not self._life.shadow.session_id:
            wanted = SessionOpen(
                world_id=self._world, strategy_id=self._strategy, runner="chaos", shadow=True
            )
            self._life.shadow = SessionKey.of(self._client.open_session(wanted))
        self._client.session_heartbeat(self._life.shadow, SessionHeartbeat())
        return self._life.shadow

    def _send(self, orders: list[Order]) -> None:
        """Send orders, those of each session together, and under its secret."""
        for session in (self._life.session, self._life.ended, self._life.shadow):
            mine = [order for order in orders if order.session_id == session.session_id]
            if session.session_id and mine:
                for verdicts in self._answers(mine, session):
                    for order, verdict in zip(mine, verdicts, strict=True):
                        self._record_verdict(order, verdict)

    def _answers(self, orders: list[Order], session: SessionKey) -> Iterator[list[OrderVerdict]]:
        """The answer of a Gateway, or of both to the same orders at the same time."""
        if len(self._both) == 1 or self._rng.random() > TO_BOTH:
            yield self._client.publish_orders(orders, session)
            return
        asked = [self._threads.submit(client.publish_orders, orders, session) for client in self._both]
        failed = [error for answer in asked if (error := answer.exception()) is not None]
        yield from (answer.result() for answer in asked if answer.exception() is None)
        if failed:
            raise failed[0]

    def _record_verdict(self, order: Order, verdict: OrderVerdict) -> None:
        self._note(order, verdict.reason.value if verdict.reason else "accepted")

    def _unanswered(self, order: Order) -> None:
        self._note(order, UNANSWERED)

    def _note(self, order: Order, said: str) -> None:
        self._diary.write(json.dumps([order.order_id, said]) + "\n")
        self._diary.flush()

    def _acknowledge(self, kind: str, event: CloudEvent) -> None:
        if (
            kind == "activation"
            and event.subject == WHOLE_WORLD
            and event.data
            and event.data.get("requires_ack")
        ):
            for session in (self._life.session, self._life.shadow):
                if not session.session_id:
                    continue
                self._publisher.acknowledge(session, int(event.data["sequence"]))

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except QmtlError as error:
            if error.code in ("E_SESSION_LOST", "E_SESSION_UNKNOWN"):
                self._life.ended, self._life.session, self._life.shadow = self._life.session, NONE, NONE
            time.sleep(0.02)


if __name__ == "__main__":
    urls, token, world, strategy, seed, diary = sys.argv[1:]
    Trader(urls.split(","), token, world, strategy, int(seed), Path(diary)).main()
