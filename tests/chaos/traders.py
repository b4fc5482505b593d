"""The processes that trade in a chaos run, which are killed and started again."""

import json
import os

from tests.chaos.world import OrderWorld
from tests.support import ROOT
from tests.support.forked import Forked
from tests.support.machine import Machine
from tests.support.order_checker import UNANSWERED


class Traders:
    """A process for each strategy of a world. Each writes a diary of the verdicts that it received.

    With two Gateways, every other one begins with the second.
    """

    def __init__(self, machine: Machine, world: OrderWorld) -> None:
        self.count = len(world.strategies)
        self._machine = machine
        self._world = world
        self._processes: dict[int, Forked] = {}

    def start(self, number: int, seed: int) -> None:
        diary = self._machine.home / f"{self._world.name}.{number}.diary"
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        urls = self._machine.urls
        first = number % len(urls)
        self._processes[number] = Forked(
            "tests.chaos.trader",
            ",".join(urls[first:] + urls[:first]),
            self._world.token,
            self._world.name,
            self._world.strategies[number],
            str(seed * 10 + number),
            str(diary),
            env=env,
            log=self._machine.home / "trader.log",
        )

    def end(self, number: int) -> None:
        process = self._processes.pop(number)
        process.kill()
        process.wait()

    def end_all(self) -> None:
        for number in list(self._processes):
            self.end(number)

    def verdicts(self) -> tuple[dict[str, str], list[str]]:
        """The verdict of each order, as far as the traders had written it down when they were killed.

        And what is wrong with them: an order that was told one thing and then another.
        """
        found = dict[str, str]()
        broken = []
        for diary in self._machine.home.glob(f"{self._world.name}.*.diary"):
            for line in diary.read_text().splitlines():
                try:
                    order, verdict = json.loads(line)
                except ValueError:
                    continue  # the line at which it was killed
                before = found.get(order, UNANSWERED)
                if UNANSWERED not in (before, verdict) and before != verdict:
                    broken.append(f"order {order} was told {before}, and then {verdict}")
                if verdict != UNANSWERED or order not in found:
                    found[order] = verdict
        return found, broken
