"""The demo's second part: strategies run through replayed time while the demo follows the event stream.

1. Submit a strategy that publishes a queue, and one whose tag query reads that queue.
2. Cut the stream's socket, then submit a third strategy: the tag query must find its queue as well, under the
   same NodeID, and the stream must resume without a gap.
"""

from datetime import datetime
from typing import Any

from api.cli.demo.waiting import LIMIT_S, require, wait_until
from api.cli.demo.worlds import RUNNING_POLICY, running_world
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.stream import Subscribe
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.runner import Runner
from qmtl_sdk.runtime.stream import StreamClient
from qmtl_sdk.samples.strategies.indicators import FastStrength, IndicatorCorrelation, SlowStrength

TOPICS = ("activation", "decisions", "policy", "queues", "sessions")
SESSIONS = 3
"""How many strategies the demo runs in this part."""


def run_streaming(client: GatewayClient, now: datetime) -> dict[str, Any]:
    """Return figures of the stream and of the tag query. Raises QmtlError (E_STACK) where one is missing."""
    spec = running_world(now)
    client.create_world(spec, RUNNING_POLICY)
    world = spec["world"]
    with StreamClient([client], Subscribe(world_id=world, topics=TOPICS)) as stream:
        require(stream.ready(), "the stream")
        try:
            figures = _run_strategies(world, stream)
        finally:
            Runner.shutdown()
        ended = stream.wait(lambda: stream.counters.events["session.ended"] == SESSIONS, LIMIT_S)
        require(ended, "the end of the sessions")
        counters = stream.counters
        return {
            "world": world,
            "events_by_type": dict(sorted(counters.events.items())),
            "reconnects": counters.reconnects,
            "max_gap": counters.max_gap,
            "delivery_p95_ms": counters.p95_ms(),
            "state_hash_matches": stream.states["activation"].state_hash == client.activation_hash(world),
            **figures,
        }


def _run_strategies(world: str, stream: StreamClient) -> dict[str, Any]:
    first = Runner.submit(FastStrength, world=world)
    query = Runner.submit(IndicatorCorrelation, world=world).running
    if query is None:
        raise QmtlError(
            "E_STACK", "the demo's strategy was not activated", f"qmtl world show {world} says why"
        )
    tags = query.tags
    node = tags.queries[0]
    node_id = node.node_id
    wait_until(lambda: tags.queues_of(node) == 1, "the first queue")
    before = tags.queues_of(node)
    stream.break_socket()
    Runner.submit(SlowStrength, world=world)
    wait_until(lambda: tags.queues_of(node) == SESSIONS - 1, "the second queue")
    bars = first.running.bars if first.running else 0
    require(stream.wait(lambda: _caught_up(stream), LIMIT_S), "the end of the stream")
    return {
        "bars": bars,
        "gate": query.gate.reason or "open",
        "tag_query": {
            "queues_before": before,
            "queues_after": tags.queues_of(node),
            "node_id_unchanged": node.node_id == node_id == node.spec.node_id(),
        },
    }


def _caught_up(stream: StreamClient) -> bool:
    opened = stream.counters.events["session.opened"] == SESSIONS
    return stream.connected and not stream.behind and opened
