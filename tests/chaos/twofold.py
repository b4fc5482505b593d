"""The chaos run of orders with two of each: Gateways, workers, order routers and relays over one PostgreSQL.

Half of the traders begin at each Gateway, and go to the other one when theirs does not answer. Mostly one of
a pair is killed, now and then both. Approvals go through the other Gateway than the operator's commands.
"""

from pathlib import Path

from tests.chaos.orders import Killing, OrderChaos
from tests.chaos.routers import Routers

# How often both of a pair are killed.
BOTH = 0.2


class TwofoldChaos(OrderChaos):
    """`dsn`: an empty PostgreSQL database."""

    victims = ("worker", "gateway", "router", "relay", "temporal", "runner")

    def __init__(self, home: Path, dsn: str) -> None:
        super().__init__(home, dsn=dsn)

    def up(self) -> "TwofoldChaos":
        super().up()
        machine = self.machine
        machine.start_worker(name="worker2")
        machine.start_relay(name="relay2")
        machine.start_router(name="router2")
        machine.start_second_gateway()
        for name in machine.all_of("router"):
            Routers(machine).await_ready(name)
        return self

    def kill(self, victim: str, run: Killing) -> str:
        """Kill one of a pair or both, and start again what was killed."""
        names = self.machine.all_of(victim) or [victim]
        if len(names) > 1 and run.rng.random() >= BOTH:
            names = [run.rng.choice(names)]
        if victim == "router":
            run.operator.routers.kill(names)
        else:
            for name in names:
                self.machine.kill(name)
            for name in names:
                self.machine.restart(name)
        return victim if len(names) == 1 else f"both {victim}s"
