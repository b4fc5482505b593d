"""From a strategy class to the world's decision, on real processes."""

import asyncio
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from qmtl_sdk import CacheView, CsvSource, Node, QmtlError, Runner, Strategy, StreamInput
from qmtl_sdk.contracts.allocations import AllocationUpdate
from qmtl_sdk.contracts.capital import StrategyCapital
from qmtl_sdk.contracts.domains import Downgrade
from qmtl_sdk.contracts.submission import SubmissionMeta
from qmtl_sdk.runtime.config import GatewaySettings
from qmtl_sdk.runtime.decided import decided_context
from qmtl_sdk.samples.strategies.momentum import LOOKBACK, SYMBOLS, Momentum
from tests.support import ROOT
from tests.support.machine import Machine, wait_for
from tests.support.strategies import LookAhead, Trend
from tests.support.submission_checker import submission_violations
from tests.support.worlds import POLICY, world


def test_a_strategy_comes_to_a_decision_and_the_same_again_reuses_everything(machine: Machine) -> None:
    first = Runner.submit(Trend("JNJ"), world="equities", config=machine.config)
    assert first.active
    assert first.ws.decision is not None
    assert first.ws.activation is not None
    assert first.ws.activation.active
    assert (first.nodes.new, first.nodes.computed) == (2, 1)
    assert first.ui_url.endswith(first.workflow_id)
    assert first.precheck["cross_context_cache_hit"] == 0
    assert first.metrics == pytest.approx(first.precheck["metrics"])
    assert "active" in first._repr_html_()
    again = Runner.submit(Trend("JNJ"), world="equities", config=machine.config)
    assert again.strategy_id == first.strategy_id
    assert again.run_id != first.run_id
    assert (again.nodes.new, again.nodes.reused, again.nodes.computed, again.nodes.cached) == (0, 2, 0, 1)
    assert again.metrics == first.metrics


def test_a_second_world_judges_it_with_every_node_reused(machine: Machine) -> None:
    """Trap 2."""
    with machine.client() as client:
        client.create_world(world("second"), POLICY)
    first = Runner.submit(Trend("MSFT"), world="equities", config=machine.config)
    second = Runner.submit(Trend("MSFT"), world="second", config=machine.config)
    assert second.strategy_id == first.strategy_id
    assert (second.nodes.new, second.nodes.reused) == (0, 2)
    assert second.nodes.computed == 1  # what one world computed is not another's to use
    assert second.active
    assert second.ws.decision is not None
    assert second.ws.decision.world_id == "second"


def test_a_result_shows_the_allocation_and_nobody_sets_it(machine: Machine) -> None:
    with machine.client() as client:
        client.create_world({**world("shared"), "capital": {"amount": "5000"}}, POLICY)
        client.set_allocations(
            AllocationUpdate.model_validate({"allocations": [{"world_id": "shared", "weight": "0.1"}]})
        )
    result = Runner.submit(Trend("KO"), world="shared", config=machine.config)
    assert result.ws.activation is not None
    weight = Decimal(repr(result.ws.activation.weight))
    assert result.allocation == StrategyCapital(
        world_share=Decimal("0.1"), weight=weight, amount=5000 * weight, currency="USD"
    )
    assert result.as_dict()["allocation"]["world_share"] == "0.1"
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'allocation'"):
        result.allocation = StrategyCapital(weight=Decimal(1))  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        result.allocation.weight = Decimal(1)


def test_in_a_running_loop_and_as_a_session(machine: Machine) -> None:
    async def notebook() -> None:
        blocking = Runner.submit(Trend("PG"), world="equities", config=machine.config)
        waiting = await Runner.submit_async(Trend("PG"), world="equities", config=machine.config)
        assert blocking.strategy_id == waiting.strategy_id
        async with Runner.session(Trend("PG"), world="equities", config=machine.config) as result:
            assert result.active

    asyncio.run(notebook())
    with Runner.session(Trend("PG"), world="equities", config=machine.config) as result:
        assert result.active
    Runner.shutdown(result)
    Runner.shutdown()
    Runner.shutdown()


def test_a_cancelled_submission_gives_its_lease_back(machine: Machine) -> None:
    from tests.support.strategies import Slow

    async def cancelled() -> None:
        task = asyncio.create_task(
            Runner.submit_async(
                Slow(0.003), world="equities", config=machine.settings(machine.home / "cancelled")
            )
        )
        while not list((machine.home / "cancelled").rglob("*.partial")):
            await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    result = Runner.submit(Slow(0.003), world="equities", config=machine.settings(machine.home / "cancelled"))
    assert result.active


def test_shutdown_ends_a_submission_that_still_computes(machine: Machine) -> None:
    from qmtl_sdk.runtime.leased import StoppedError
    from tests.support.strategies import Slow

    config = machine.settings(machine.home / "shutdown")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(Runner.submit, Slow(0.004), world="equities", config=config)
        wait_for(lambda: list((machine.home / "shutdown").rglob("*.partial")), "partial output")
        Runner.shutdown()
        with pytest.raises(StoppedError):
            running.result(30)
    assert Runner.submit(Slow(0.004), world="equities", config=config).active


def test_a_node_with_a_seed_is_computed_anew(machine: Machine) -> None:
    class Seeded(Strategy):
        def setup(self) -> None:
            price = StreamInput(tags=["KO", "price"], interval="1d", period=3)
            self.add_nodes(
                [
                    Node(
                        price,
                        lambda v: {"position": float(v[price].values[-1] > v[price].values[0])},
                        params={"seed": 1},
                        name="seeded",
                    )
                ]
            )

    results = [Runner.submit(Seeded, world="equities", config=machine.config) for _ in range(2)]
    assert [(result.nodes.computed, result.nodes.cached) for result in results] == [(1, 0), (1, 0)]
    assert "seed" in results[0].precheck["warnings"][0]


def test_a_result_says_what_was_not_read_and_why_a_metric_is_missing(machine: Machine) -> None:
    """843 of 1,797 days were judged, and too short a period ended in "sharpe is missing", without a word."""

    class Short(Strategy):
        def setup(self) -> None:
            price = StreamInput(tags=["KO", "price"], interval="1d", period=20)

            def above(view: CacheView) -> pd.DataFrame:
                close = view[price].frame["close"]
                return pd.DataFrame({"position": (close > close.rolling(200).mean()).astype(float)})

            self.add_nodes([Node(price, above, name="trend")])

    result = Runner.submit(Short, world="equities", config=machine.config)
    notes = "\n".join(result.precheck["warnings"])
    assert re.search(r"\d+ bars of its streams close after 2017-12-\S+, and were not read", notes), notes
    assert "trend takes no position at any bar: what it computes may need more bars than its period" in notes
    decision = result.ws.decision
    assert decision is not None
    (mine,) = [item for item in decision.strategies if item.strategy_id == result.strategy_id]
    assert "sharpe is missing: it took no position at any bar" in mine.violations[0].detail


def test_a_live_hint_never_raises_the_domain(machine: Machine) -> None:
    from qmtl_sdk.contracts.submission import StrategySubmit
    from qmtl_sdk.nodes.strategy import BuiltStrategy

    build = BuiltStrategy(Trend("WMT", 7))
    with machine.client() as client:
        submit = StrategySubmit(
            world_id="equities",
            dag=build.dag,
            node_ids_crc32=build.crc32,
            idempotency_key="a-live-hint",
            meta=SubmissionMeta(execution_domain="live"),
        )
        found = client.dry_run(submit)
    assert found.context.execution_domain == "backtest"
    assert not found.context.orders_allowed


def test_without_a_decision_the_result_is_safe_and_no_exception(machine: Machine) -> None:
    result = Runner.submit(Trend("XOM", 9), world="equities", config=machine.config, decision_timeout_s=0)
    assert result.ws.decision is None
    assert result.safe_mode
    assert not result.context.orders_allowed
    assert result.effective_mode == "compute-only"
    assert result.context.downgrade_reason == Downgrade.DECISION_UNAVAILABLE
    assert "orders are off" in str(result)


def test_a_stale_decision_closes_the_context(machine: Machine) -> None:
    from datetime import UTC, datetime, timedelta

    from qmtl_sdk.contracts.submission import SubmissionAck, SubmissionOutcome

    result = Runner.submit(Trend("JNJ", 11), world="equities", config=machine.config)
    decision = result.ws.decision
    assert decision is not None
    outcome = SubmissionOutcome(
        world_id="equities",
        strategy_id=result.strategy_id,
        run_id=result.run_id,
        status="decided",
        decision=decision,
        activation=result.ws.activation,
    )
    ack = SubmissionAck.model_construct(world_id="equities", context=result.context)
    fresh = decided_context(ack, outcome, decision.decided_at + timedelta(seconds=decision.ttl))
    stale = decided_context(ack, outcome, decision.decided_at + timedelta(seconds=decision.ttl + 1))
    assert not fresh.safe_mode
    assert stale.downgrade_reason == Downgrade.STALE_DECISION
    assert result.ws.activation is not None
    modeless = outcome.model_copy(
        update={"activation": result.ws.activation.model_copy(update={"effective_mode": None})}
    )
    assert (
        decided_context(ack, modeless, datetime.now(UTC)).downgrade_reason == Downgrade.DECISION_UNAVAILABLE
    )


def test_the_service_measures_what_a_plain_script_measures(machine: Machine) -> None:
    """The demo's momentum strategy, computed from the Parquet file alone."""
    result = Runner.submit(Momentum, world="equities", config=machine.config)
    path = ROOT / "qmtl_sdk" / "samples" / "prices" / "us_equities_1d.parquet"
    prices = pd.read_parquet(path)
    prices = prices[prices["ts"] < "2017-12-30"].pivot_table(index="ts", columns="symbol", values="close")[
        list(SYMBOLS)
    ]
    position = (prices > prices.shift(LOOKBACK)).astype(float).iloc[LOOKBACK:]
    cost = 1e-4 * position.diff().fillna(position).abs()
    r = (position * 1.0).shift(1).fillna(0) * prices.pct_change().reindex(position.index) - cost.shift(
        1
    ).fillna(0)
    r.iloc[0] = 0.0
    r = r.mean(axis=1)
    curve = (1 + r).cumprod()
    falls = 1 - curve / np.maximum(curve.cummax(), 1)
    log = np.log(curve.to_numpy())
    x = np.arange(len(log))
    trades = position.diff().fillna(position).ne(0)
    expected = {
        "sharpe": r.mean() / r.std() * np.sqrt(252),
        "max_drawdown": falls.max(),
        "linearity": np.corrcoef(x, log)[0, 1] ** 2,
        "win_rate": (r[r != 0] > 0).mean(),
        "ulcer": np.sqrt((falls**2).mean()),
        "turnover": position.diff().fillna(position).abs().sum().mean() / (len(r) / 252),
        "trades": float(trades.sum().sum()),
        "sample_days": float(len(r)),
        "total_return": curve.iloc[-1] - 1,
        "annual_return": r.mean() * 252,
        "annual_volatility": r.std() * np.sqrt(252),
        "gross_long": position.mean(axis=1).mean(),
        "gross_short": 0.0,
        "leverage": position.mean(axis=1).max(),
    }
    assert result.metrics == pytest.approx(expected, abs=1e-9)


def test_looking_ahead_is_refused_and_the_judgment_says_so(machine: Machine) -> None:
    with pytest.raises(QmtlError) as caught:
        Runner.submit(LookAhead, world="equities", config=machine.config)
    assert caught.value.code == "E_LOOKAHEAD"
    assert "crystal ball looks ahead at 20" in caught.value.message
    from qmtl_sdk.nodes.strategy import BuiltStrategy

    strategy = BuiltStrategy(LookAhead).dag.strategy_id
    with machine.client() as client:
        status = client.status(strategy, "equities", wait_s=30)
    assert status.outcome is not None
    assert status.outcome.error_code == "E_LOOKAHEAD"
    assert status.outcome.decision is not None
    mine = status.outcome.decision.of(strategy)
    assert mine is not None
    assert mine.violations[0].rule == "E_LOOKAHEAD"


class OwnData(Strategy):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def setup(self) -> None:
        price = StreamInput(interval="1d", period=3, source=CsvSource(self.path, interval="1d"))
        self.add_nodes(
            [
                Node(
                    price,
                    lambda v: {"position": float(v[price].values[-1] > v[price].values[0])},
                    name="mine",
                )
            ]
        )


def test_a_source_of_ones_own(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    days = pd.date_range("2017-01-01", periods=200, tz="UTC")
    pd.DataFrame({"Date": days.strftime("%Y-%m-%d"), "Close": 100 + np.sin(np.arange(200))}).to_csv(
        path, index=False
    )
    result = Runner.submit(OwnData(path), world="equities", config=machine.config)
    assert result.metrics["sample_days"] == 198
    path.write_text("Date,Close\n2017-01-02,1\n2017-01-01,2\n")
    with pytest.raises(QmtlError, match="goes back in time at 2017-01-01"):
        Runner.submit(OwnData(path), world="equities", config=machine.config)


def test_a_burst_of_submissions_each_comes_to_one_decision(machine: Machine) -> None:
    """A short form of the burst of 300; the long one is `make bench ONLY=submit`."""
    strategies = [Trend(symbol, 5 + period) for symbol in ("KO", "WMT") for period in range(6)]
    with ThreadPoolExecutor(6) as pool:
        results = list(
            pool.map(lambda found: Runner.submit(found, world="equities", config=machine.config), strategies)
        )
    assert len({result.strategy_id for result in results}) == 12
    assert all(result.ws.decision and result.ws.decision.of(result.strategy_id) for result in results)
    database = machine.database()
    assert [line for line in submission_violations(database) if "twice" in line or "two queues" in line] == []
    database.close()


def test_no_gateway_is_one_line(tmp_path: Path, machine: Machine) -> None:
    config = machine.settings(tmp_path).model_copy(
        update={"gateway": GatewaySettings(url="http://127.0.0.1:1")}
    )
    from qmtl_sdk.runtime.client import GatewayClient

    assert config.gateway.url
    with (
        GatewayClient(config.gateway.url, None, away_limit_s=0.2) as client,
        pytest.raises(QmtlError, match="can't be reached") as caught,
    ):
        client.worlds()
    assert caught.value.code == "E_UNAVAILABLE"


@pytest.mark.parametrize("attempt", range(3))
def test_exit_codes_of_processes_that_held_a_temporal_client(machine: Machine, attempt: int) -> None:
    """The core's threads must not abort the process at its end (50 of 50 in the long form)."""
    script = (
        "import asyncio, sys; from temporal.client import connect; "
        "from temporal.shutdown import exit_process; "
        "from activities.settings import TemporalSettings as T; "
        "asyncio.run(connect(T(address=sys.argv[1]))); exit_process(7)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, machine.server.address],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (7, "")
