"""What an operator of a chaos run does with the circuit breaker."""

import time
from datetime import UTC, datetime

from qmtl_sdk.contracts.worlds import CircuitBreaker, WorldUpdate
from tests.chaos.world import OrderWorld
from tests.support.machine import wait_for


class BreakerActs:
    """Sets the circuit breaker of a world, waits for what it does, and takes it away again."""

    def __init__(self, world: OrderWorld) -> None:
        self._world = world
        self._client = world.client

    def _break_circuit(self) -> None:
        self._client.update_world(
            self._world.name, WorldUpdate(circuit_breaker=CircuitBreaker(max_orders_per_minute=20))
        )
        time.sleep(1.0)
        self._client.update_world(self._world.name, WorldUpdate(circuit_breaker=CircuitBreaker()))
        self._world.resume()

    def _break_circuit_twice(self) -> None:
        """Break the circuit twice within a minute: after the resume, orders are counted anew."""
        self._await_second(0, 30)
        self._limit_orders(20)
        for _ in range(2):
            wait_for(self._is_halted, "halt by the circuit breaker")
            self._world.resume()
        self._limit_orders(None)
        self._world.resume()

    def _count_over_a_minute(self) -> None:
        """Let orders be counted at the end of a minute; in the next one, they are counted anew.

        The limit is half as much again as was counted, which only the orders of both minutes reach.
        """
        self._await_second(40, 46)
        before = self._accepted()
        self._limit_orders(10**6)
        self._await_second(55, 59)
        counted = max(self._accepted() - before, 20)
        self._limit_orders(counted * 3 // 2)
        self._await_second(0, 30)
        enough = self._accepted() + counted
        wait_for(
            lambda: self._is_halted() or self._accepted() > enough or datetime.now(UTC).second > 50,
            "orders of the new minute",
        )
        self._limit_orders(None)
        self._world.resume()

    def _limit_orders(self, most: int | None) -> None:
        breaker = CircuitBreaker(max_orders_per_minute=most)
        self._client.update_world(self._world.name, WorldUpdate(circuit_breaker=breaker))

    def _is_halted(self) -> bool:
        return bool(self._client.fence(self._world.name).halted)

    def _accepted(self) -> int:
        return self._client.fence(self._world.name).orders.get("accepted", 0)

    @staticmethod
    def _await_second(first: int, last: int) -> None:
        """Wait until the clock shows one of these seconds of a minute."""
        wait_for(lambda: first <= datetime.now(UTC).second <= last, f"second {first} of a minute", 65)
