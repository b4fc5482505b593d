"""A strategy that its world has switched on goes on running.

On the world's clock, heard of, and with a gate that closes when it should.
"""

import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qmtl_sdk import CacheView, Node, QmtlError, Runner, Strategy, StreamInput, SubmitResult
from qmtl_sdk.compute.live import OutputRow
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.identity import compute_key
from qmtl_sdk.contracts.sessions import QueueMessage, SessionOpen, message_key
from qmtl_sdk.data.bars import iso
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.config import GatewaySettings
from qmtl_sdk.runtime.routes.running import SessionKey
from qmtl_sdk.runtime.running import RunningStrategy
from tests.spec.correlation import CorrelationStrategy
from tests.support.machine import Machine, wait_for
from tests.support.strategies import Trend
from tests.support.twofold import machine_for
from tests.support.worlds import FX, PAPER, POLICY, WORLD

ANY = {"selection": {"score": "sample_days"}, "gating_policy": PAPER["gating_policy"]}
DAYS_A_SECOND = 86_400.0


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    found = machine_for(
        tmp_path_factory.mktemp("running"),
        **{"QMTL_EVENTS__HEARTBEAT_S": "0.2", "QMTL_GATEWAY__SESSION_LEASE_S": "1.5"},
    )
    try:
        found.up()
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def client(machine: Machine) -> Iterator[GatewayClient]:
    with machine.client() as found:
        yield found


@pytest.fixture
def home(request: pytest.FixtureRequest) -> Iterator[str]:
    yield "w" + "".join(c for c in request.node.name.lower() if c.isalnum())[-50:]
    Runner.shutdown()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("qmtl-")]


def make(
    client: GatewayClient,
    name: str,
    policy: dict[str, Any] = PAPER,
    start: str = "2017-06-30T00:00:00Z",
    speed: float = 5 * DAYS_A_SECOND,
    **changes: Any,
) -> str:
    client.create_world(
        {**WORLD, "world": name, "clock": {"replay": {"start": start, "speed": speed}}, **changes}, policy
    )
    return name


def hourly(client: GatewayClient, name: str, speed: float = 6 * 3600.0) -> str:
    return make(client, name, ANY, "2017-06-06T00:00:00Z", speed, data={"presets": [FX]})


def running(result: SubmitResult) -> RunningStrategy:
    assert result.running is not None, result.verdict
    return result.running


def session_of(client: GatewayClient, name: str, ended: bool = False) -> Any:
    return client.sessions(name, ended)[0]


def test_it_goes_on_and_says_bar_for_bar_what_a_later_submission_computes(
    machine: Machine, client: GatewayClient, home: str
) -> None:
    make(client, home)
    seen: list[OutputRow] = []
    result = Runner.submit(Trend, world=home, config=machine.config, on_output=seen.append)
    assert (result.active, result.effective_mode, result.context.execution_domain, result.safe_mode) == (
        True,
        "paper",
        Domain.DRYRUN,
        False,
    )
    wait_for(lambda: len(seen) >= 25, "bars")
    wait_for(lambda: session_of(client, home).report.gate == "open", "open gate")
    session = session_of(client, home)
    assert (session.name, session.actor, session.execution_domain, session.strategy_id) == (
        "Trend",
        __import__("getpass").getuser(),
        "dryrun",
        result.strategy_id,
    )
    assert session.host
    assert session.report.positions["activation"] >= 1
    assert session.report.dropped_bars == 0
    Runner.shutdown(result)
    ended = session_of(client, home, ended=True)
    assert (ended.end_reason, client.sessions(home)) == ("stopped by its author", [])
    later = Runner.submit(Trend, world=home, config=machine.config, run=False)
    from qmtl_sdk.reports.artifact import decode

    returns = decode(client.artifact(later.returns_hash))
    batch = {
        int(ts): float(value) for ts, value in zip(returns.ts, returns.positions["above AAPL"], strict=True)
    }
    mine = {output.ts: output.values["position"] for output in seen}
    assert len(mine) == len(seen)
    assert mine == {ts: value for ts, value in batch.items() if ts in mine}


def test_rows_go_to_their_queues_once_whatever_is_sent_twice(
    machine: Machine, client: GatewayClient, home: str
) -> None:
    make(client, home)
    seen: list[OutputRow] = []
    begin = "2017-06-30"  # of both: the world's clock has gone on by the time that a strategy is judged
    result = Runner.submit(Trend, world=home, config=machine.config, as_of=begin, on_output=seen.append)
    node = next(node for node in running(result).build.nodes if node.label.startswith("above"))
    topic = running(result).grant.queue_map[node.node_id].topic
    assert topic.startswith(f"{home}.dryrun.")
    wait_for(lambda: len(client.queue_read(topic, 0).messages) >= 10, "messages")
    Runner.shutdown(result)
    again = Runner.submit(
        Trend, world=home, config=machine.config, as_of=begin
    )  # goes over the same bars again
    wait_for(lambda: len(client.queue_read(topic, 0).messages) > len(seen), "more messages")
    session = SessionKey.of(running(again).grant)
    assert client.queue_append(topic, client.queue_read(topic, 0).messages[:5], session) == 0
    Runner.shutdown(again)
    messages = client.queue_read(topic, 0).messages
    assert len({message.ts for message in messages}) == len(messages), "a bar was added twice"
    assert [message.ts for message in messages] == sorted(message.ts for message in messages)
    key = messages[0].key
    assert key.startswith(f"{node.node_id}:86400:{messages[0].ts // 10**9}#ck=blake3:")


def test_a_queue_is_of_whoever_runs_its_node_in_its_domain(
    machine: Machine, client: GatewayClient, home: str
) -> None:
    """Any author wrote, and any reader read, any queue of the world, in any domain."""
    make(client, home)
    result = Runner.submit(Trend, world=home, config=machine.config, as_of="2017-06-30")
    other = Runner.submit(Trend("KO", 19), world=home, config=machine.config, as_of="2017-06-30", run=False)
    mine = running(result)
    node = next(node for node in mine.build.nodes if node.label.startswith("above"))
    target, session = mine.grant.queue_map[node.node_id], SessionKey.of(mine.grant)
    others = machine.issue("eve", {home: Role.AUTHOR}).token
    ts = 10**9 * 86_400
    good = message_key(node.node_id, 86_400, ts // 10**9, target.compute_key, "window")
    backtest = target.topic.replace(f"{home}.dryrun.", f"{home}.backtest.")
    opened = client.open_session(SessionOpen(world_id=home, strategy_id=other.strategy_id, runner="another"))
    (foreign, *_) = {item.topic for item in opened.queue_map.values()} - {
        item.topic for item in mine.grant.queue_map.values()
    }

    def refused(who: GatewayClient, topic: str, key: str, session: SessionKey) -> str:
        with pytest.raises(QmtlError) as caught:
            who.queue_append(topic, [QueueMessage(key=key, ts=ts, values={})], session)
        return caught.value.code

    try:
        wait_for(lambda: client.queue_read(target.topic, 0).messages, "messages")
        before = len(client.queue_read(target.topic, 0).messages)
        with GatewayClient(machine.url, others) as eve:
            for key in (SessionKey(""), SessionKey("nothing")):
                assert refused(eve, target.topic, good, key) == "E_SESSION_UNKNOWN"
            for key in (session, SessionKey(session.session_id, "guess")):
                assert refused(eve, target.topic, good, key) == "E_SESSION_HOLDER"
            with pytest.raises(QmtlError, match="E_SESSION_HOLDER"):
                eve.queue_read(target.topic, 0, session=session)
            with pytest.raises(QmtlError, match="E_SESSION_UNKNOWN"):
                eve.queue_read(target.topic, 0)
        assert client.queue_read(target.topic, 0, session=session).messages
        for topic in (backtest, foreign):
            assert refused(client, topic, good, session) == "E_QUEUE_FORBIDDEN"
        with pytest.raises(QmtlError, match="E_QUEUE_FORBIDDEN"):
            client.queue_read(backtest, 0, session=session)
        live = compute_key(node.node_id, home, "live", "", "")
        for wrong in (
            message_key(node.node_id, 86_400, ts // 10**9, live, "window"),
            message_key(node.node_id, 86_400, ts // 10**9 + 86_400, target.compute_key, "window"),
            message_key("blake3:another", 86_400, ts // 10**9, target.compute_key, "window"),
            good.removesuffix("window"),
            "k",
        ):
            assert refused(client, target.topic, wrong, session) == "E_QUEUE_KEY"
        assert all(message.ts != ts for message in client.queue_read(target.topic, before - 1).messages)
        assert client.queue_append(target.topic, [QueueMessage(key=good, ts=ts, values={})], session) == 1
    finally:
        Runner.shutdown(result)
    assert refused(client, target.topic, good, session) == "E_SESSION_LOST"


def test_a_strategy_that_is_switched_off_closes_its_gate_and_computes_on(
    machine: Machine, client: GatewayClient, home: str
) -> None:
    make(client, home)
    result = Runner.submit(Trend, world=home, config=machine.config)
    strategy = running(result)
    wait_for(lambda: strategy.gate.open, "open gate")
    client._call("POST", f"/worlds/{home}/policies", json={"selection": {"gates": {"and": ["sharpe >= 50"]}}})
    client.decide(home, "decide-again")
    wait_for(lambda: not strategy.gate.open, "closed gate")
    assert strategy.gate.reason == "the strategy is not active"
    bars = strategy.bars
    wait_for(lambda: strategy.bars > bars, "bars")
    client._call("POST", f"/worlds/{home}/policies", json=PAPER)
    client.decide(home, "decide-once-more")
    wait_for(lambda: strategy.gate.open, "open gate")


def open_when_fresh(machine: Machine, strategy: RunningStrategy) -> bool:
    """Whether the gate is open soon after the world was judged again.

    A decision that is older than its ttl closes it.
    """
    with machine.client() as client:
        client.decide("w", uuid.uuid4().hex)
    deadline = time.monotonic() + 2
    while not strategy.gate.open and time.monotonic() < deadline:
        time.sleep(0.02)
    return strategy.gate.open


def test_losing_the_stream_closes_the_gate_after_the_decisions_ttl_and_computing_goes_on(
    tmp_path: Path,
) -> None:
    machine = machine_for(
        tmp_path, **{"QMTL_EVENTS__HEARTBEAT_S": "0.2", "QMTL_GATEWAY__SESSION_LEASE_S": "60"}
    )
    try:
        machine.up()
        with machine.client() as client:
            make(client, "w", {**PAPER, "decision_ttl": 4}, speed=DAYS_A_SECOND * 3)
        strategy = running(Runner.submit(Trend, world="w", config=machine.config))
        wait_for(lambda: open_when_fresh(machine, strategy) and strategy.bars > 2, "open gate")
        machine.kill("gateway")
        wait_for(lambda: not strategy.gate.open, "closed gate")
        wait_for(
            lambda: strategy.gate.reason.startswith("the event stream has delivered nothing for"), "reason"
        )  # a moment before, it was the decision that had become stale
        assert strategy.activation.silence_s >= 4
        bars = strategy.bars
        wait_for(lambda: strategy.bars > bars + 3, "bars")
        machine.start_gateway()
        wait_for(lambda: open_when_fresh(machine, strategy), "open gate")
        node = next(iter(strategy.grant.queue_map.values()))
        with machine.client() as client:
            wait_for(lambda: len(client.queue_read(node.topic, 0).messages) >= bars, "the rows of that time")
    finally:
        Runner.shutdown()
        machine.close()


def test_a_lease_that_ends_closes_the_gate_and_a_new_session_is_opened(
    machine: Machine, client: GatewayClient, home: str
) -> None:
    make(client, home)
    strategy = running(Runner.submit(Trend, world=home, config=machine.config))
    wait_for(lambda: strategy.gate.open, "open gate")
    first = strategy.grant.session_id
    client.end_session(SessionKey(first), "ended by an operator")
    wait_for(lambda: strategy.grant.session_id != first, "new session")
    wait_for(lambda: strategy.gate.open, "open gate")
    ended = {item.session_id: item for item in client.sessions(home, ended=True)}
    assert ended[first].end_reason == "ended by an operator"
    client._call("POST", f"/worlds/{home}/policies", json={"selection": {"gates": {"and": ["sharpe >= 50"]}}})
    client.decide(home, "decide-again")
    client.end_session(SessionKey(strategy.grant.session_id), "and again")
    wait_for(lambda: "no session can be opened" in strategy.gate.reason, "closed gate")


def test_the_repr_of_a_running_strategy_gives_its_name_world_stage_and_state(
    machine: Machine, client: GatewayClient, home: str
) -> None:
    make(client, home)
    strategy = running(Runner.submit(Trend, world=home, config=machine.config))
    wait_for(lambda: strategy.gate.open, "open gate")
    name = f"<RunningStrategy {strategy.build.name!r} in world {home!r}, stage dryrun, "
    assert repr(strategy) == f"{name}orders on>"
    strategy.gate.faults["data"] = "no bars"
    assert repr(strategy) == f"{name}orders off: no bars>"
    strategy.close()
    assert repr(strategy) == f"{name}closed>"


def test_a_runner_that_is_gone_loses_its_session(machine: Machine, client: GatewayClient, home: str) -> None:
    make(client, home)
    strategy = running(Runner.submit(Trend, world=home, config=machine.config))
    strategy._stop.set()  # nothing sends heartbeats any more, as if its process had died
    wait_for(lambda: not client.sessions(home), "end of the session")
    assert session_of(client, home, ended=True).end_reason.startswith("its lease ended")
    with pytest.raises(QmtlError) as caught:
        client.session_heartbeat(SessionKey.of(strategy.grant), strategy.report())
    assert caught.value.code == "E_SESSION_LOST"
    strategy._stop.clear()


def test_a_strategy_that_is_not_switched_on_gets_no_session(
    machine: Machine, client: GatewayClient, home: str
) -> None:
    make(client, home, POLICY)
    result = Runner.submit(Trend, world=home, config=machine.config)
    assert (result.active, result.running, result.effective_mode) == (True, None, "validate")
    from qmtl_sdk.contracts.sessions import SessionOpen

    with pytest.raises(QmtlError) as caught:
        client.open_session(SessionOpen(world_id=home, strategy_id=result.strategy_id, runner="r"))
    assert caught.value.code == "E_SESSION_INACTIVE"
    assert "backtest" in caught.value.message


def test_a_clock_that_is_an_hour_off_changes_nothing(
    machine: Machine, client: GatewayClient, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(client, home, speed=1.0)  # an hour would be 3,600 bars of a second, or none
    strategy = running(Runner.submit(Trend, world=home, config=machine.config))
    real = datetime.now

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return real(tz).replace(year=2027)

    for module in ("qmtl_sdk.runtime.session", "qmtl_sdk.runtime.feed", "qmtl_sdk.runtime.topic_reader"):
        monkeypatch.setattr(f"{module}.datetime", Wrong)
    wait_for(lambda: strategy.gate.open, "open gate")
    assert abs((strategy.now() - client.world(home).now(datetime.now(UTC))).total_seconds()) < 5
    assert strategy.bars == 0


# the source


class OwnFile(Strategy):
    def setup(self) -> None:
        price = StreamInput(tags=["X"], interval="1d", period=2)
        self.add_nodes(
            [
                Node(
                    price,
                    lambda view: pd.DataFrame(
                        {"position": (view[price].frame["close"].diff() > 0).astype(float)}
                    ),
                    name="up",
                )
            ]
        )


def lines(days: range) -> str:
    first = pd.Timestamp("2020-01-01")
    return "date,close\n" + "".join(
        f"{(first + pd.Timedelta(days=day)).date()},{100 + 3 * np.sin(day):.4f}\n" for day in days
    )


def own_world(client: GatewayClient, name: str, file: Path, speed: float = 0.0) -> None:
    presets = [
        {
            "name": "own",
            "source": "csv",
            "path": str(file),
            "interval": "1d",
            "calendar": "24/7",
            "streams": {"X": ["X"]},
        }
    ]
    make(client, name, ANY, "2020-03-01T00:00:00Z", speed, data={"presets": presets})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text + text.splitlines()[-1] + "\n", "two bars at"),
        (lambda text: text + "2020-01-05,1.0\n", "goes back in time"),
        (lambda text: "nothing\n", "no time column"),
    ],
)
def test_a_source_that_doubles_or_goes_back_in_time_closes_the_gate_until_it_is_mended(
    machine: Machine, client: GatewayClient, home: str, tmp_path: Path, change: Any, said: str
) -> None:
    file = tmp_path / "own.csv"
    good = lines(range(60))
    file.write_text(good)
    own_world(client, home, file)
    strategy = running(Runner.submit(OwnFile, world=home, config=machine.config))
    wait_for(lambda: strategy.gate.open, "open gate")
    file.write_text(change(good))
    wait_for(lambda: not strategy.gate.open, "closed gate")
    assert said in strategy.gate.reason
    wait_for(lambda: session_of(client, home).report.fault, "the fault in the session")
    file.write_text(good)
    wait_for(lambda: strategy.gate.open, "open gate")
    assert strategy.bars == 0


def test_a_source_that_stops_closes_the_gate_and_goes_on_when_it_comes_back(
    machine: Machine, client: GatewayClient, home: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.csv"
    file.write_text(lines(range(62)))
    own_world(client, home, file, speed=2 * DAYS_A_SECOND)
    strategy = running(Runner.submit(OwnFile, world=home, config=machine.config))
    wait_for(lambda: "has no bar since" in strategy.gate.reason, "closed gate")
    assert iso(strategy.feed.newest_closes()["X"]) in strategy.gate.reason
    before = strategy.bars
    file.write_text(lines(range(400)))
    wait_for(lambda: strategy.gate.open, "open gate")
    assert strategy.bars > before


# tag queries


class Indicator(Strategy):
    """An hourly indicator that others may find by its tag; it holds nothing."""

    def __init__(self, name: str, period: int) -> None:
        super().__init__()
        self.label = name
        self.period = period

    def setup(self) -> None:
        price = StreamInput(tags=["EURUSD", "price"], interval="1h", period=self.period)
        name = self.label

        def indicator(view: CacheView) -> pd.DataFrame:
            close = view[price].frame["close"]
            gain, loss = close.diff().clip(lower=0).sum(), -close.diff().clip(upper=0).sum()
            return pd.DataFrame({name: [100 * gain / (gain + loss)]})

        self.add_nodes([Node(price, indicator, name=name, tags=["ta-indicator"])])


def test_a_tag_query_takes_in_a_queue_that_appears_later_without_restart_or_another_identity(
    machine: Machine, client: GatewayClient, home: str
) -> None:
    """The appendix's correlation strategy, word for word."""
    hourly(client, home)
    seen: list[OutputRow] = []
    result = Runner.submit(CorrelationStrategy, world=home, config=machine.config, on_output=seen.append)
    strategy = running(result)
    (query,) = strategy.tags.queries
    identity = query.node_id
    assert strategy.tags.queues_of(query) == 0
    Runner.submit(Indicator("rsi", 14), world=home, config=machine.config)
    wait_for(lambda: strategy.tags.queues_of(query) == 1, "first queue")
    wait_for(
        lambda: any(output.node is query and output.values.get("rsi") == 1.0 for output in seen),
        "correlation of one with itself",
    )
    Runner.submit(Indicator("mfi", 5), world=home, config=machine.config)
    wait_for(lambda: strategy.tags.queues_of(query) == 2, "second queue")
    wait_for(
        lambda: any(
            set(output.values) == {"rsi", "mfi"} and not np.isnan(list(output.values.values())).any()
            for output in seen
            if output.node is query
        ),
        "correlation of two",
    )
    last = [output for output in seen if output.node is query][-1]
    assert all(-1 <= value <= 1 for value in last.values.values())
    wait_for(
        lambda: any(output.node.label == "indicator_corr" and output.window for output in seen),
        "the node after it",
    )
    assert [output.fault for output in seen if output.fault] == []
    # A slow machine may cost it a session of 1.5 s; a restart would compute rows again.
    times = [output.ts for output in seen if output.node is query]
    assert times == sorted(set(times))
    assert (query.node_id, strategy.tags.queries) == (identity, [query])
    found = client.queues_by_tag(["ta-indicator"], 3600, "any", home, "dryrun")
    assert [item.name for item in found] == ["rsi", "mfi"]
    assert client.queues_by_tag(["ta-indicator", "other"], 3600, "all", home, "dryrun") == []
    assert client.queues_by_tag(["ta-indicator"], 60, "any", home, "dryrun") == []
    assert client.queues_by_tag(["ta-indicator"], 3600, "any", home, "live") == []


# shadow


def test_shadow_is_for_operators_has_its_own_namespace_and_no_orders(
    machine: Machine, client: GatewayClient, home: str
) -> None:
    hourly(client, home)
    author = machine.issue("author", {home: Role.AUTHOR}).token
    config = machine.config.model_copy(update={"gateway": GatewaySettings(url=machine.url, token=author)})
    with pytest.raises(QmtlError) as caught:
        Runner.submit(Indicator("rsi", 14), world=home, config=config, shadow=True)
    assert caught.value.code == "E_SHADOW"
    assert "run.begun" not in {entry["action"] for entry in client.audit(home)["entries"]}, (
        "it is the submission that was refused"
    )
    seen: list[OutputRow] = []
    shadow = Runner.submit(
        Indicator("rsi", 14), world=home, config=machine.config, shadow=True, on_output=seen.append
    )
    plain = Runner.submit(Indicator("rsi", 14), world=home, config=machine.config)
    assert (shadow.context.execution_domain, plain.context.execution_domain) == (Domain.SHADOW, Domain.DRYRUN)
    assert shadow.ws.decision is None
    assert client.decisions(home)[0].of(shadow.strategy_id) is not None, (
        "the world judged the run that was no shadow"
    )
    wait_for(lambda: len(seen) > 3, "mirrored live inputs")
    strategy = running(shadow)
    assert strategy.gate.reason == "shadow: orders are off"
    topics = [
        {target.topic for target in running(result).grant.queue_map.values()} for result in (shadow, plain)
    ]
    assert all(topic.startswith(f"{home}.shadow.") for topic in topics[0])
    assert not topics[0] & topics[1]
    assert [
        item.execution_domain for item in client.queues_by_tag(["ta-indicator"], 3600, "any", home, "shadow")
    ] == ["shadow"]
    folders = {path.name for path in (machine.home / "cache" / home).iterdir()}
    assert "shadow" in folders
    assert len(folders) > 1
    with GatewayClient(machine.url, author) as other, pytest.raises(QmtlError) as caught:
        from qmtl_sdk.contracts.sessions import SessionOpen

        other.open_session(
            SessionOpen(world_id=home, strategy_id=shadow.strategy_id, runner="r", shadow=True)
        )
    assert caught.value.code == "E_SHADOW"
    bus = [
        event
        for event in strategy.stream.states["queues"].events.values()
        if event.type in ("queue_updated", "tagquery.upsert")
    ]
    assert bus
    for event in bus:
        assert event.data is not None
        assert event.data["world_id"] == home
        assert event.data["execution_domain"] in ("shadow", "dryrun", "backtest")
    assert any(event.data["execution_domain"] == "shadow" for event in bus if event.data)
