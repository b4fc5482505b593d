"""What a submission adds to the global graph. Pure: the same DAG and the same graph give the same plan.

Same NodeID → its queue is reused. Same NodeID with another `schema_hash` is a minor schema change: reused, and marked for a full recompute after
seven days. Everything else is a new node with a new queue. The cost is in the size of the submission, not of the graph.
"""

from collections.abc import Mapping
from datetime import timedelta

from activities.queues.topics import Kind, asset_of, folded, kind_of, topic_name
from qmtl_sdk.contracts.canonical import hash_parts
from qmtl_sdk.contracts.dag import Dag, NodeRecord
from qmtl_sdk.contracts.model import Model

RECOMPUTE_AFTER = timedelta(days=7)


class PlannedQueue(Model):
    topic: str
    node_id: str
    kind: Kind


class DiffPlan(Model):
    """`new` and `reused` NodeIDs, `minor` the reused ones whose schema changed a little, `queues` to create, `topics` of all nodes."""

    new: tuple[str, ...]
    reused: tuple[str, ...]
    minor: tuple[str, ...]
    queues: tuple[PlannedQueue, ...]
    topics: dict[str, str]


def plan_diff(
    dag: Dag,
    world_id: str,
    domain: str,
    known: Mapping[str, str],
    queues: Mapping[str, str],
    taken: Mapping[str, str],
) -> DiffPlan:
    """`known`: NodeID → schema_hash in the graph; `queues`: NodeID → topic in this world and domain; `taken`: folded topic → NodeID."""
    nodes = {node.node_id: node for node in dag.nodes}
    taken, topics, planned = dict(taken), dict(queues), []
    for node in sorted(dag.nodes, key=lambda item: item.node_id):
        if node.node_id not in topics:
            topic = topic_name(world_id, domain, asset_of(node, nodes), node, taken)
            taken[folded(topic)], topics[node.node_id] = node.node_id, topic
            planned.append(PlannedQueue(topic=topic, node_id=node.node_id, kind=kind_of(node)))
    ids = sorted(nodes)
    return DiffPlan(
        new=tuple(node_id for node_id in ids if node_id not in known),
        reused=tuple(node_id for node_id in ids if node_id in known),
        minor=tuple(node_id for node_id in ids if _minor(nodes[node_id], known)),
        queues=tuple(planned),
        topics={node_id: topics[node_id] for node_id in ids},
    )


def sentinel_id(world_id: str, strategy_id: str) -> str:
    """The identity of the version boundary in front of a strategy in a world."""
    return "sentinel:" + hash_parts(world_id, strategy_id).removeprefix("blake3:")[:32]


def _minor(node: NodeRecord, known: Mapping[str, str]) -> bool:
    return bool(node.schema_hash) and known.get(node.node_id, node.schema_hash) != node.schema_hash
