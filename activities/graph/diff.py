"""Plan what a submission adds to the global graph. Pure: the same DAG and graph give the same plan.

A node whose NodeID is in the graph reuses its queue. If its `schema_hash` differs, that is a minor schema
change: it is reused as well, and marked for a full recompute after seven days. Any other node is new and
gets a queue. The cost depends on the size of the submission, not of the graph.
"""

from collections.abc import Mapping
from datetime import timedelta

from activities.queues.topics import Kind, assets_of, folded, kind_of, topic_name
from qmtl_sdk.contracts.canonical import hash_parts
from qmtl_sdk.contracts.dag import Dag, NodeRecord
from qmtl_sdk.contracts.model import Model

# How long a minor schema change may keep outputs that were computed before it.
RECOMPUTE_AFTER = timedelta(days=7)


class PlannedQueue(Model):
    """A queue to create."""

    topic: str
    node_id: str
    kind: Kind


class DiffPlan(Model):
    """What a DAG adds to the graph.

    `new` and `reused` are NodeIDs, `minor` the reused ones with a minor schema change. `queues` are to be
    created; `topics` has the topic of every node.
    """

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
    """Compare a DAG with the graph.

    `known`: NodeID → schema_hash in the graph; `queues`: NodeID → topic in this world and domain; `taken`:
    folded topic → NodeID.
    """
    nodes = {node.node_id: node for node in dag.nodes}
    assets = assets_of(dag)
    taken = dict(taken)
    topics = dict(queues)
    planned = []
    for node in sorted(dag.nodes, key=lambda item: item.node_id):
        if node.node_id not in topics:
            topic = topic_name(world_id, domain, assets[node.node_id], node, taken)
            taken[folded(topic)] = node.node_id
            topics[node.node_id] = topic
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
    """Return the id of the version boundary in front of a strategy in a world."""
    return "sentinel:" + hash_parts(world_id, strategy_id).removeprefix("blake3:")[:32]


def _minor(node: NodeRecord, known: Mapping[str, str]) -> bool:
    return bool(node.schema_hash) and known.get(node.node_id, node.schema_hash) != node.schema_hash
