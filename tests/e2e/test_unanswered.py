"""A submission that no Gateway answers is computed only, in safe mode, and raises nothing."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qmtl_sdk import CacheView, CsvSource, Node, QmtlError, Runner, Strategy, StreamInput
from qmtl_sdk.contracts.domains import Domain, Downgrade
from qmtl_sdk.runtime.config import CacheSettings, GatewaySettings, LimitsInTests, Settings
from qmtl_sdk.runtime.result import SubmitResult
from tests.support.command import Person
from tests.support.machine import Machine
from tests.support.one_answer import answering_once
from tests.support.strategies import LookAhead, Trend

OWN = """
from qmtl_sdk import CsvSource, Strategy, StreamInput, Node


class Own(Strategy):
    def setup(self):
        price = StreamInput(interval="1d", period=5, source=CsvSource("prices.csv", interval="1d"))
        self.add_nodes([Node(price, lambda view: {"position": 1.0}, name="always")])
"""


@dataclass(frozen=True)
class Nowhere:
    """An address at which nobody listens, and a cache."""

    url: str
    cache: Path

    def settings(self) -> Settings:
        return Settings(
            home=self.cache / "home",
            gateway=GatewaySettings(url=self.url, token="t"),
            cache=CacheSettings(dir=self.cache),
            test=LimitsInTests(test_mode=True),
        )

    def submit(self, strategy: Strategy, **options: Any) -> SubmitResult:
        return Runner.submit(strategy, world="equities", config=self.settings(), **options)


@pytest.fixture
def nowhere(tmp_path: Path) -> Nowhere:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return Nowhere(f"http://127.0.0.1:{port}", tmp_path)


def prices(folder: Path) -> Path:
    file = folder / "prices.csv"
    days = np.arange("2024-01-01", "2024-04-01", dtype="datetime64[D]")
    rows = [f"{day},{100 + number % 7}" for number, day in enumerate(days)]
    file.write_text("\n".join(["ts,close", *rows]))
    return file


class Own(Strategy):
    """Brings its own prices, and is always long."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def setup(self) -> None:
        price = StreamInput(interval="1d", period=5, source=CsvSource(self.file, interval="1d"))

        def always(view: CacheView) -> dict[str, float]:
            return {"position": 1.0}

        self.add_nodes([Node(price, always, name="always")])


def is_closed(result: SubmitResult) -> bool:
    context = result.context
    return (
        (context.execution_domain, context.downgrade_reason)
        == (Domain.BACKTEST, Downgrade.DECISION_UNAVAILABLE)
        and context.downgraded
        and result.safe_mode
        and not context.orders_allowed
        and (result.active, result.running, result.ws.decision) == (False, None, None)
        and result.error_code == "E_UNAVAILABLE"
    )


def test_a_strategy_with_data_of_its_own_is_computed(nowhere: Nowhere) -> None:
    result = nowhere.submit(Own(prices(nowhere.cache)))
    assert is_closed(result)
    assert result.nodes.computed == 1
    assert result.precheck["bars"] > 80
    assert result.metrics == {}, "metrics are the service's"
    assert "computed only, orders are off" in result.verdict


def test_a_strategy_of_a_world_is_computed_with_what_the_world_said_last(
    machine: Machine, nowhere: Nowhere
) -> None:
    before = Runner.submit(
        Trend("XOM", 31), world="equities", config=machine.settings(nowhere.cache), run=False
    )
    assert before.metrics["sharpe"] is not None
    result = nowhere.submit(Trend("XOM", 31))
    assert is_closed(result)
    assert result.precheck["metrics"] == before.precheck["metrics"]
    assert result.context.as_of == before.context.as_of
    assert result.nodes.cached == 0, "only services derive the keys of cached outputs"
    pinned = nowhere.submit(Trend("XOM", 31), as_of="2014-01-01")
    assert pinned.precheck["to"] < "2014-01-02" < result.precheck["to"]
    later = nowhere.submit(Trend("XOM", 31), as_of="2022-01-01")
    assert later.precheck["to"] == result.precheck["to"], "the world's clock has not got there"


def test_a_strategy_of_an_unknown_world_is_not_computed_and_says_so(nowhere: Nowhere) -> None:
    result = nowhere.submit(Trend())
    assert is_closed(result)
    assert (result.nodes.computed, result.precheck) == (0, {})
    assert result.seconds < 20, "in test mode nothing waits for half a minute"
    assert "only the Gateway knows the data of AAPL/price" in result.error


def test_what_an_author_did_wrong_is_still_an_error(machine: Machine, nowhere: Nowhere) -> None:
    with pytest.raises(QmtlError, match="E_LOOKAHEAD"):
        Runner.submit(LookAhead, world="equities", config=machine.settings(nowhere.cache))
    with pytest.raises(QmtlError, match="E_LOOKAHEAD"):
        nowhere.submit(LookAhead())


@pytest.mark.parametrize(
    ("named", "code"),
    [
        (["a", "b"], "E_WORLDS_SEVERAL"),
        ([], "E_WORLDS_SEVERAL"),
        (None, "E_WORLD_UNKNOWN"),
        ("A B", "E_WORLD_UNKNOWN"),
    ],
)
def test_what_is_not_one_world_is_refused_before_anything_is_sent(
    nowhere: Nowhere, named: Any, code: str
) -> None:
    """It was an AttributeError."""
    with pytest.raises(QmtlError, match=code):
        Runner.submit(Trend, world=named, config=nowhere.settings())


def test_another_server_at_the_address_is_an_error(nowhere: Nowhere) -> None:
    answer = b"HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\nno such page"
    with answering_once(answer) as (url, _), pytest.raises(QmtlError, match="not as a Gateway does"):
        Nowhere(url, nowhere.cache).submit(Trend())


def test_the_command_shows_what_was_computed_and_ends_as_for_an_absent_gateway(nowhere: Nowhere) -> None:
    prices(nowhere.cache)
    (nowhere.cache / "own.py").write_text(OWN)
    author = Person(nowhere.cache, QMTL_HOME=str(nowhere.cache / "home"), QMTL_TEST__TEST_MODE="true")
    author._env["QMTL_GATEWAY__URL"] = nowhere.url
    done = author.types("submit", "own.py", "--world", "equities")
    assert done.returncode == 3
    assert "as computed here" in done.stdout
    assert "backtest (safe mode: decision_unavailable)" in done.stdout
    assert "No Gateway answers" in done.stderr
