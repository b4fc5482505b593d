"""`qmtl demo`: the whole loop on sample prices, in a world whose clock stands in 2017; then a stretch of replayed time in which strategies run, a stream is cut, and a
tag query takes in a queue that appears while it runs; and at last a strategy that trades, through two applies and a rollback."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from api.cli import demo_apply
from api.cli.world import decision_table, gateway
from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.decisions import DecisionEnvelope
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.stream import Subscribe
from qmtl_sdk.nodes.strategy import Strategy
from qmtl_sdk.reports.artifact import decode
from qmtl_sdk.reports.tearsheet import Tearsheet, write
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.config import settings
from qmtl_sdk.runtime.result import SubmitResult
from qmtl_sdk.runtime.runner import Runner
from qmtl_sdk.runtime.stream import StreamClient
from qmtl_sdk.samples.strategies.coin_flip import CoinFlip
from qmtl_sdk.samples.strategies.indicators import FastStrength, IndicatorCorrelation, SlowStrength
from qmtl_sdk.samples.strategies.mean_reversion import FxMeanReversion
from qmtl_sdk.samples.strategies.momentum import Momentum

STRATEGIES: tuple[type[Strategy], ...] = (Momentum, FxMeanReversion, CoinFlip)
_SYMBOLS = ("AAPL", "JNJ", "JPM", "KO", "MSFT", "PG", "WMT", "XOM")
_SHOWN = ("sharpe", "max_drawdown", "trades", "sample_days", "total_return")
POLICY: dict[str, Any] = {
    "data_currency": {"max_lag": "5d", "min_history": "250d"},
    "selection": {
        "gates": {"and": ["sample_days >= 250", "trades >= 20", "sharpe >= 0.6", "max_drawdown <= 0.35"]},
        "score": "sharpe + 0.1*win_rate - 0.2*ulcer",
        "topk": {"total": 2},
    },
}


def world_spec(now: datetime) -> dict[str, Any]:
    """The demo's world. It is named after the day, since a replay clock that has run for days has left the sample prices behind, and after what it is, so that another version's demo makes its own."""
    equities = {
        "name": "us_equities",
        "source": "replay",
        "path": "sample:us_equities_1d.parquet",
        "interval": "1d",
        "calendar": "XNYS",
        "streams": {name: [name, "price"] for name in _SYMBOLS},
    }
    fx = {
        "name": "fx",
        "source": "replay",
        "path": "sample:eurusd_1h.parquet",
        "interval": "1h",
        "calendar": "24/5",
        "streams": {"EURUSD": ["EURUSD", "price"]},
    }
    spec = {
        "description": "sample prices, replayed from the end of 2017",
        "clock": {"replay": {"start": "2017-12-30T00:00:00Z", "speed": 1}},
        "data": {"presets": [equities, fx]},
        "execution": {"fee_bps": 0.2, "slippage_bps": 0.3},
    }
    return {
        "world": f"demo_{now:%Y%m%d}_{hash_of({'spec': spec, 'policy': POLICY}).removeprefix('blake3:')[:6]}",
        **spec,
    }


def run(report: Path) -> tuple[dict[str, Any], Callable[[], list[Any]]]:
    """The demo's figures, and their text for people. Raises QmtlError."""
    if not report.resolve().parent.is_dir():
        raise QmtlError(
            "E_CONFIG",
            f"the folder of {report} does not exist",
            "make it, or name another file with --report",
        )
    with gateway(start=True) as client:
        spec = world_spec(datetime.now(UTC))
        client.create_world(spec, POLICY)
        world = spec["world"]
        results = [Runner.submit(strategy, world=world) for strategy in STRATEGIES]
        again = Runner.submit(STRATEGIES[0], world=world)
        decision = client.decisions(world)[0]
        stream = _stream(client, datetime.now(UTC))
        trading = demo_apply.run(client, datetime.now(UTC))
        sheets = [_sheet(client, result, decision) for result in results]
        ui = client.gateway_status()["temporal_ui"]
    path = write(report, decision, sheets)
    body = {
        "world": world,
        "gateway": settings().gateway.url or client.url,
        "strategies": [_row(result, decision) for result in results],
        "resubmission": _row(again, decision),
        "decision": decision.json_dict(),
        "stream": stream,
        **{name: trading[name] for name in ("apply", "orders", "rollback")},
        "trading": {name: trading[name] for name in ("world", "strategy_id", "dryrun", "audit_entries")},
        "temporal_ui": ui,
        "report": str(path),
    }
    return body, lambda: _text(results, again, decision, body)


def running_world(now: datetime) -> dict[str, Any]:
    """Hours of EUR/USD, six a second; named after the moment, since its clock must stand at its beginning."""
    fx = {
        "name": "fx",
        "source": "replay",
        "path": "sample:eurusd_1h.parquet",
        "interval": "1h",
        "calendar": "24/5",
        "streams": {"EURUSD": ["EURUSD", "price"]},
    }
    return {
        "world": f"demo_running_{now:%Y%m%d_%H%M%S}",
        "description": "paper trading, replayed",
        "clock": {"replay": {"start": "2017-06-06T00:00:00Z", "speed": 6 * 3600}},
        "data": {"presets": [fx]},
    }


RUNNING_POLICY: dict[str, Any] = {
    "selection": {"score": "sample_days"},
    "gating_policy": {"domains": {"from": "backtest", "to": "dryrun"}, "approvals": {"required": 0}},
}


def _stream(client: GatewayClient, now: datetime) -> dict[str, Any]:
    """Run strategies through replayed time, cut the socket on the way, and say what was heard. Raises QmtlError (E_STACK) where something does not come."""
    spec = running_world(now)
    client.create_world(spec, RUNNING_POLICY)
    world = spec["world"]
    with StreamClient(
        [client],
        Subscribe(world_id=world, topics=("activation", "decisions", "policy", "queues", "sessions")),
    ) as stream:
        _come(stream.ready(), "the stream")
        try:
            first = Runner.submit(FastStrength, world=world)
            query = Runner.submit(IndicatorCorrelation, world=world).running
            if query is None:
                raise QmtlError(
                    "E_STACK", "the demo's strategy was not switched on", "qmtl world show says why"
                )
            node = query.tags.queries[0]
            identity = node.node_id
            _come(
                query.stream.wait(lambda: query.tags.queues_of(node) == 1, 30)
                or query.tags.queues_of(node) == 1,
                "the first queue",
            )
            before = query.tags.queues_of(node)
            stream.cut()
            Runner.submit(SlowStrength, world=world)
            deadline = time.monotonic() + 30
            while query.tags.queues_of(node) < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            _come(query.tags.queues_of(node) == 2, "the second queue")
            bars = first.running.bars if first.running else 0
            _come(
                stream.wait(
                    lambda: (
                        stream.connected
                        and not stream.behind
                        and stream.counters.events["session.opened"] == 3
                    ),
                    30,
                ),
                "the end of the stream",
            )
            after = query.tags.queues_of(node)
            gate = query.gate.reason or "open"
        finally:
            Runner.shutdown()
        _come(
            stream.wait(lambda: stream.counters.events["session.ended"] == 3, 30), "the end of the sessions"
        )
        found = stream.counters
        return {
            "world": world,
            "events_by_type": dict(sorted(found.events.items())),
            "reconnects": found.reconnects,
            "max_gap": found.max_gap,
            "delivery_p95_ms": found.p95_ms(),
            "state_hash_matches": stream.states["activation"].state_hash == client.activation_hash(world),
            "bars": bars,
            "gate": gate,
            "tag_query": {
                "queues_before": before,
                "queues_after": after,
                "node_id_unchanged": node.node_id == identity == node.spec.node_id(),
            },
        }


def _come(came: bool, what: str) -> None:
    if not came:
        raise QmtlError(
            "E_STACK",
            f"the demo waited in vain for {what}",
            "qmtl status shows what runs; its logs are in the data folder",
        )


def _row(result: SubmitResult, decision: DecisionEnvelope) -> dict[str, Any]:
    """A submission with what the world's last judgment says of it: the first was alone when it was judged."""
    row, mine = result.as_dict(), decision.of(result.strategy_id)
    if mine is not None:
        row |= {
            "active": mine.active,
            "rank": mine.rank,
            "weight": mine.weight,
            "violations": [item.json_dict() for item in mine.violations],
        }
    return row


def _sheet(client: GatewayClient, result: SubmitResult, decision: DecisionEnvelope) -> Tearsheet:
    mine = decision.of(result.strategy_id)
    returns = decode(client.artifact(result.returns_hash)) if result.returns_hash else None
    why = "; ".join(f"{item.rule}: {item.detail}" for item in mine.violations) if mine else ""
    verdict = (
        f"rank {mine.rank}, weight {mine.weight:.3g}, passed every gate"
        if mine and mine.active
        else why or result.verdict
    )
    return Tearsheet(
        result.name,
        result.strategy_id,
        verdict,
        bool(mine and mine.active),
        result.metrics,
        returns,
        result.ui_url,
    )


def _text(
    results: list[SubmitResult], again: SubmitResult, decision: DecisionEnvelope, body: dict[str, Any]
) -> list[Any]:
    lines: list[Any] = ["", decision_table(decision), ""]
    for result in [*results, again]:
        counts = result.nodes
        metrics = ", ".join(
            f"{name} {value:.4g}" for name in _SHOWN if (value := result.metrics.get(name)) is not None
        )
        twice = " (submitted again)" if result is again else ""
        lines.append(f"{result.name}{twice}: {metrics}")
        lines.append(
            f"  nodes: {counts.new} new, {counts.reused} reused in the graph; {counts.computed} computed, {counts.cached} from the cache; {result.seconds:.1f} s"
        )
        lines.append(f"  {result.ui_url}")
    told, query = body["stream"], body["stream"]["tag_query"]
    lines += ["", f"Running in {told['world']}: {told['bars']} bars of replayed time, gate {told['gate']}"]
    lines.append(
        f"  heard {sum(told['events_by_type'].values())} events, p95 {told['delivery_p95_ms']} ms after they were written; the socket was cut {told['reconnects']} time(s), largest gap {told['max_gap']}"
    )
    lines.append(
        f"  a tag query took in a new queue while it ran: {query['queues_before']} → {query['queues_after']}, its NodeID {'unchanged' if query['node_id_unchanged'] else 'CHANGED'}"
    )
    lines += [
        "",
        *demo_apply.text(
            {**body["trading"], **{name: body[name] for name in ("apply", "orders", "rollback")}}
        ),
    ]
    return [
        *lines,
        "",
        f"Report       {body['report']}",
        f"Temporal UI  {body['temporal_ui']}",
        "Everything stays up until `qmtl down`.",
    ]
