"""Returns that the service does not compute itself are marked, and lead no further than backtest."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from activities.messages.submission import RunContextBody
from activities.storage.database import Database
from activities.submissions.evidence import examine, measured_fingerprint
from activities.submissions.self_reported import why_self_reported
from qmtl_sdk import CacheView, Node, Strategy, StreamInput, TagQueryNode
from qmtl_sdk.compute.engine import compute
from qmtl_sdk.compute.output import NodeOutput
from qmtl_sdk.contracts.domains import ComputeContext, Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.policy_text import policy_from
from qmtl_sdk.contracts.worlds import Execution, WorldSpec
from qmtl_sdk.data.bars import Bars
from qmtl_sdk.data.presets import bind, load
from qmtl_sdk.data.source import ParquetSource
from qmtl_sdk.nodes.strategy import BuiltStrategy
from qmtl_sdk.reports.artifact import encode
from qmtl_sdk.reports.returns import Returns, returns_of
from tests.support.admissions import run_of
from tests.support.desk import GATED, Desk, policy
from tests.support.strategies import Trend
from tests.support.worlds import world

AS_OF = datetime(2017, 1, 1, tzinfo=UTC)
EXECUTION = Execution(fee_bps=2, slippage_bps=3)
WHY = "the strategy names its own returns"


class Two(Strategy):
    """Two instruments with other warm-ups and weights."""

    def setup(self) -> None:
        nodes = []
        for symbol, period in (("AAPL", 20), ("KO", 60)):
            price = StreamInput(tags=[symbol, "price"], interval="1d", period=period)

            def above(view: CacheView, price: StreamInput = price, period: int = period) -> pd.DataFrame:
                close = view[price].frame["close"]
                return pd.DataFrame({"position": (close > close.rolling(period).mean()).astype(float)})

            nodes.append(Node(price, above, name=symbol))
        self.add_nodes(nodes, weights=dict(zip(nodes, (0.75, 0.25), strict=True)))


class Own(Strategy):
    """Over a file of the author's own."""

    def setup(self) -> None:
        source = ParquetSource("sample:us_equities_1d.parquet", interval="1d", symbol="AAPL")
        price = StreamInput(source=source, interval="1d", period=5)
        held = lambda view: pd.DataFrame({"position": [1.0] * len(view[price].frame)})  # noqa: E731
        self.add_nodes([Node(price, held, name="own")])


class Named(Strategy):
    """Returns that no market gave: never negative."""

    def setup(self) -> None:
        price = StreamInput(tags=["AAPL", "price"], interval="1d", period=2)
        mine = Node(price, lambda v: v[price].frame["close"].pct_change().abs(), name="mine")
        self.add_nodes([mine], returns=mine)


def computed(strategy: Strategy) -> tuple[Returns, BuiltStrategy, RunContextBody]:
    """Compute a strategy as the SDK does."""
    build = BuiltStrategy(strategy)
    bindings = bind(build.dag, WorldSpec.model_validate(world("w")))
    bound = {item.node_id: item for item in bindings}
    outputs: dict[str, NodeOutput] = {}
    for node in build.nodes:
        if isinstance(node, StreamInput):
            found = bound.get(node.node_id)
            bars = load(found.preset, found.stream) if found else node.source.read()  # type: ignore[union-attr]
            outputs[node.node_id] = NodeOutput(bars.until(AS_OF))
        else:
            outputs[node.node_id], _ = compute(node, outputs)
    run = RunContextBody(
        run_id="r",
        world_id="w",
        strategy_id=build.dag.strategy_id,
        name="n",
        context=ComputeContext(world_id="w", execution_domain=Domain.BACKTEST, as_of=AS_OF.isoformat()),
        bindings=bindings,
        execution=EXECUTION,
    )
    return returns_of(build, outputs, EXECUTION), build, run


def why(returns: Returns, build: BuiltStrategy, run: RunContextBody) -> str:
    """What the service says of an uploaded artifact."""
    _, decoded = examine(encode(returns), build.dag, run)
    return why_self_reported(decoded, build.dag, run)


@pytest.mark.parametrize("strategy", [Trend(), Trend("KO", 50), Two()], ids=["trend", "another", "two"])
def test_the_service_computes_the_same_returns_from_the_positions(strategy: Strategy) -> None:
    returns, build, run = computed(strategy)
    assert np.abs(returns.values).max() > 0.01
    assert why(returns, build, run) == ""


def test_returns_that_the_strategy_names_are_self_reported() -> None:
    """A node `pct_change().abs()` had a Sharpe ratio of 15.8 and passed every gate."""
    assert "returns=" in why(*computed(Named()))


def test_returns_over_a_source_of_the_authors_own_are_self_reported() -> None:
    assert "a source of the author's own" in why(*computed(Own()))


def test_returns_that_do_not_follow_from_the_positions_are_self_reported() -> None:
    """Whoever edits the artifact names no `returns=` in the DAG."""
    returns, build, run = computed(Trend())
    better = np.abs(returns.values)
    found = why(replace(returns, values=better), build, run)
    assert "its positions and the world's bars give a return of -" in found
    better = returns.values + np.where(returns.ts > returns.ts[0], 1e-6, 0.0)
    assert "give a return of" in why(replace(returns, values=better), build, run)


def test_returns_without_positions_over_the_worlds_data_are_self_reported() -> None:
    returns, build, run = computed(Trend())
    for claimed in (
        replace(returns, positions={}, weights={}, instruments={}),
        replace(returns, instruments={}),
        replace(returns, instruments=dict.fromkeys(returns.positions, "blake3:nothing")),
    ):
        assert "no positions over the world's data" in why(claimed, build, run)


def test_a_missing_close_is_carried_and_counted() -> None:
    """The move across it was lost: +115 % became +102 %."""
    build = BuiltStrategy(Trend())
    (stream,) = [node for node in build.nodes if isinstance(node, StreamInput)]
    (node,) = [node for node in build.nodes if not isinstance(node, StreamInput)]
    ts = np.arange(4, dtype="int64") * 86_400 * 10**9
    outputs = {
        stream.node_id: NodeOutput(Bars(ts, {"close": np.array([100.0, np.nan, 110.0, 121.0])}, 86_400)),
        node.node_id: NodeOutput(Bars(ts, {"position": np.ones(4)}, 86_400)),
    }
    found = returns_of(build, outputs, Execution())
    np.testing.assert_allclose(found.values, [0.0, 0.0, 0.1, 0.1])
    assert found.carried == 1


def test_self_reported_evidence_is_judged_and_goes_no_further_than_backtest(
    database: Database, tmp_path: Path
) -> None:
    for name, rules in (("asked", policy()), ("unasked", policy(approvals={"required": 0}))):
        desk = Desk(database, name, found=rules)
        strategy = f"strategy:{name}own"
        desk.evidence(strategy, self_reported=WHY)
        found = desk.judge(tmp_path)[strategy]
        assert found.active
        assert [item.effective_mode for item in desk.fence.activations(name, strategy)] == ["validate"]
        with pytest.raises(QmtlError, match=f"self-reported: {WHY}"):
            desk.request("dryrun", strategies=[strategy])
    assert "self-reported" in found.stays


def test_what_an_author_says_hides_nothing_that_was_measured(database: Database, tmp_path: Path) -> None:
    """A strategy whose measured evidence fails could name its own returns, and pass."""
    desk = Desk(database)
    (strategy,) = desk.strategies
    desk.evidence(strategy, sharpe=-1.0)
    desk.evidence(strategy, sharpe=9.0, self_reported=WHY)
    assert not desk.judge(tmp_path)[strategy].active


def test_self_reported_strategies_take_nothing_from_measured_ones(database: Database, tmp_path: Path) -> None:
    """Rank and weight were theirs by figures that nobody had measured."""
    selection = {**GATED["selection"], "topk": {"total": 1}}
    found = {}
    for name, rules in (("one", {**GATED, "selection": selection}), ("both", GATED)):
        desk = Desk(database, name, found=policy_from(rules))
        own = f"strategy:{name}own"
        desk.evidence(own, sharpe=9.0, self_reported=WHY)
        found[name] = desk.judge(tmp_path)
    assert {name[9:]: item.active for name, item in found["one"].items()} == {"one0": True, "oneown": False}
    assert {name[9:]: item.weight for name, item in found["both"].items()} == {"both0": 1.0, "bothown": 0.0}


def test_a_fingerprint_is_of_what_the_service_has_read() -> None:
    """A client's text was the evidence of a strategy with a source of its own."""

    class Query(Strategy):
        def setup(self) -> None:
            self.add_nodes([TagQueryNode(query_tags=["ta"], interval="1h", compute_fn=lambda view: 1.0)])

    run = run_of("r", "strategy:s")
    assert measured_fingerprint(BuiltStrategy(Own()).dag, run) == ""
    assert measured_fingerprint(BuiltStrategy(Query()).dag, run).startswith("blake3:")
    read = run.context.model_copy(update={"dataset_fingerprint": "blake3:read"})
    found = run.model_copy(update={"context": read})
    assert measured_fingerprint(BuiltStrategy(Trend()).dag, found) == "blake3:read"
