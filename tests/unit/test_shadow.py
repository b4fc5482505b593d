"""The guide to the shadow domain, step by step, with this project's module names."""

import asyncio
from typing import Any

import pytest

from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.events import DATA


def test_gateway_context_check() -> None:
    async def snippet() -> None:
        from activities.submissions.context import ComputeContextService
        from qmtl_sdk.contracts.submission import StrategySubmit

        submit = StrategySubmit(
            dag_json="{}", meta={"execution_domain": "shadow"}, world_ids=["shadow-world"], node_ids_crc32=0
        )  # type: ignore[call-arg,arg-type]
        svc = ComputeContextService(sources=None)  # retains shadow even without WS
        ctx = await svc.build(submit)
        assert ctx.execution_domain == "shadow"
        assert not ctx.downgraded

    asyncio.run(snippet())


@pytest.mark.parametrize(
    ("hint", "domain"),
    [
        ("live", "backtest"),
        ("prod", "backtest"),
        ("paper", "backtest"),
        ("nonsense", "backtest"),
        ("Shadow", "shadow"),
        (None, "backtest"),
    ],
)
def test_no_other_hint_raises_the_domain(hint: str | None, domain: str) -> None:
    from activities.submissions.context import ComputeContextService
    from qmtl_sdk.contracts.submission import StrategySubmit

    submit = StrategySubmit.model_validate(
        {"dag_json": "{}", "meta": {"execution_domain": hint}, "world_id": "w", "node_ids_crc32": 0}
    )
    ctx = asyncio.run(ComputeContextService(sources=None).build(submit))
    assert (ctx.execution_domain, ctx.orders_allowed) == (domain, False)


def test_queue_updates_carry_world_and_domain() -> None:
    payload = {
        "tags": ["shadow-tag"],
        "interval": 60,
        "queues": [{"queue": "q-shadow", "global": False}],
        "match_mode": "any",
        "world_id": "shadow-world",
        "execution_domain": "shadow",
        "version": 1,
    }
    for name in ("queue_updated", "tagquery.upsert"):
        found = DATA[name].model_validate(payload).model_dump(mode="json", by_alias=True)
        assert (found["world_id"], found["execution_domain"], found["queues"][0]["queue"]) == (
            "shadow-world",
            "shadow",
            "q-shadow",
        )
        for field in ("world_id", "execution_domain"):
            with pytest.raises(ValueError, match=field):
                DATA[name].model_validate({key: value for key, value in payload.items() if key != field})


def fed(domain: str, enabled: bool = True, **context: Any) -> list[Any]:
    from qmtl_sdk.contracts.domains import ComputeContext
    from qmtl_sdk.nodes.node import Node
    from qmtl_sdk.runtime.runner import Runner
    from qmtl_sdk.transforms.publisher import TradeOrderPublisherNode

    ctx = ComputeContext(world_id="shadow-world", execution_domain=domain, **context)
    Runner.set_enable_trade_submission(enabled)
    service = type("S", (), {"orders": [], "post_order": lambda self, o: self.orders.append(o)})()
    Runner.set_trade_execution_service(service)
    try:
        src = Node(name="sig", interval=1, period=1)
        pub = TradeOrderPublisherNode(src)
        src.apply_compute_context(ctx)
        pub.apply_compute_context(ctx)
        Runner.feed_queue_data(pub, src.node_id, 1, 0, {"action": "BUY", "size": 1.0})
        Runner.feed_queue_data(pub, src.node_id, 1, 1, {"action": "HOLD", "size": 1.0})
        Runner.feed_queue_data(pub, src.node_id, 1, 2, {"action": "SELL", "size": float("nan")})
        with pytest.raises(QmtlError, match="not an input"):
            Runner.feed_queue_data(pub, "blake3:other", 1, 0, {})
        with pytest.raises(QmtlError, match="interval"):
            Runner.feed_queue_data(pub, src.node_id, 60, 0, {})
        found: list[Any] = service.orders
        return found
    finally:
        Runner.set_enable_trade_submission(False)
        Runner.set_trade_execution_service(None)


def test_runner_order_gating() -> None:
    assert fed("shadow") == []  # orders are blocked in shadow domain
    from qmtl_sdk.runtime.runner import Runner

    assert Runner.orders.blocked["shadow"] >= 1


def test_the_same_order_leaves_where_it_may() -> None:
    assert fed("dryrun") == [{"action": "BUY", "size": 1.0, "timestamp": 0}]
    assert fed("dryrun", enabled=False) == []
    assert fed("dryrun", safe_mode=True) == []
    assert fed("backtest") == []
