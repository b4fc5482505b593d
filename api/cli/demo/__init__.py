"""`qmtl demo`: everything that QMTL does, on sample prices.

1. Judge three strategies in a world whose clock stands at the end of 2017, and submit one of them again.
2. Run strategies through replayed time, cut the event stream, and add a queue that a tag query finds.
3. Trade: two applies and a rollback.
4. Change the shares of the capital that two worlds have, and their positions with it.
5. Write the report.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from api.cli.connection import gateway
from api.cli.demo.rebalancing import run_rebalancing
from api.cli.demo.streaming import run_streaming
from api.cli.demo.text import demo_text
from api.cli.demo.trading import run_trading
from api.cli.demo.worlds import JUDGING_POLICY, judging_world
from api.cli.text.worlds import reasons
from qmtl_sdk.contracts.decisions import DecisionEnvelope
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.nodes.strategy import Strategy
from qmtl_sdk.reports.artifact import decode
from qmtl_sdk.reports.tearsheet import Tearsheet, write
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.config import settings
from qmtl_sdk.runtime.result import SubmitResult
from qmtl_sdk.runtime.runner import Runner
from qmtl_sdk.samples.strategies.coin_flip import CoinFlip
from qmtl_sdk.samples.strategies.mean_reversion import FxMeanReversion
from qmtl_sdk.samples.strategies.momentum import Momentum

STRATEGIES: tuple[type[Strategy], ...] = (Momentum, FxMeanReversion, CoinFlip)


def run(report: Path) -> tuple[dict[str, Any], Callable[[], list[Any]]]:
    """Run the demo. Return its figures as JSON, and a function that describes them. Raises QmtlError.

    (Any: JSON and rich tables.)
    """
    if not report.resolve().parent.is_dir():
        raise QmtlError(
            "E_CONFIG",
            f"the folder of {report} does not exist",
            "create it, or name another file with --report",
        )
    with gateway(start=True) as client:
        spec = judging_world(datetime.now(UTC))
        client.create_world(spec, JUDGING_POLICY)
        world = spec["world"]
        results = [Runner.submit(strategy, world=world) for strategy in STRATEGIES]
        resubmission = Runner.submit(STRATEGIES[0], world=world)
        decision = client.decisions(world)[0]
        stream = run_streaming(client, datetime.now(UTC))
        trading = run_trading(client, datetime.now(UTC))
        rebalancing = run_rebalancing(client, datetime.now(UTC))
        sheets = [_sheet(client, result, decision) for result in results]
        ui = client.gateway_status()["temporal_ui"]
    body = {
        "world": world,
        "gateway": settings().gateway.url or client.url,
        "strategies": [_row(result, decision) for result in results],
        "resubmission": _row(resubmission, decision),
        "decision": decision.json_dict(),
        "stream": stream,
        **{name: trading[name] for name in ("apply", "orders", "rollback")},
        "trading": {name: trading[name] for name in trading.keys() - {"apply", "orders", "rollback"}},
        "rebalancing": rebalancing,
        "temporal_ui": ui,
        "report": str(write(report, decision, sheets)),
    }
    return body, lambda: demo_text(results, resubmission, decision, body)


def _row(result: SubmitResult, decision: DecisionEnvelope) -> dict[str, Any]:
    """Return a submission with what the newest decision says; its own was made before the others came."""
    row = result.as_dict()
    mine = decision.of(result.strategy_id)
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
    verdict = result.verdict
    if mine is not None:
        passed = f"rank {mine.rank}, weight {mine.weight:.3g}, passed every gate"
        verdict = passed if mine.active else reasons(mine) or result.verdict
    return Tearsheet(
        result.name,
        result.strategy_id,
        verdict,
        bool(mine and mine.active),
        result.metrics,
        decode(client.artifact(result.returns_hash)) if result.returns_hash else None,
        result.ui_url,
    )
