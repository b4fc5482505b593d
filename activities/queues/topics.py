"""The topic of a node: its name, kind and layout.

`{world_id}.{execution_domain}.{asset}_{node_type}_{first 8 of digest}_{version}`. While another node has that
name, two more digits of the digest are added. Names that differ only in case, or in `.` against `_`, count as
the same, because brokers do not tell them apart.
"""

import re
from collections.abc import Mapping
from enum import StrEnum

from qmtl_sdk.contracts.dag import STREAM, Dag, NodeRecord
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.identity import PREFIX
from qmtl_sdk.contracts.model import Model


class Kind(StrEnum):
    """What a topic carries."""

    RAW = "raw"
    INDICATOR = "indicator"
    ORDERS = "orders"


class Layout(Model):
    """Partitions, retention in days and replicas of a topic."""

    partitions: int
    retention_days: int
    replication: int


# The layout of each kind on a cluster with enough brokers.
LAYOUTS = {
    Kind.RAW: Layout(partitions=3, retention_days=7, replication=3),
    Kind.INDICATOR: Layout(partitions=1, retention_days=30, replication=2),
    Kind.ORDERS: Layout(partitions=1, retention_days=90, replication=3),
}

# The assets of nodes that derive from no stream, and from several.
_NONE = "none"
_MULTI = "multi"


def kind_of(node: NodeRecord) -> Kind:
    """Return the kind of a node's topic."""
    return Kind.RAW if node.node_type == STREAM else Kind.INDICATOR


def layout_of(kind: Kind, brokers: int) -> Layout:
    """Return the layout on a cluster of this size: no more replicas than brokers."""
    layout = LAYOUTS[kind]
    return layout.model_copy(update={"replication": min(layout.replication, brokers)})


def folded(topic: str) -> str:
    """Return the form in which brokers compare topic names."""
    return topic.lower().replace(".", "_")


def assets_of(dag: Dag) -> dict[str, str]:
    """Return the instrument that each node derives from, by NodeID.

    That is its stream's `instrument`, or the stream's first tag. `multi`: it derives from several streams;
    `none`: from none.
    """
    by_id = {node.node_id: node for node in dag.nodes}
    sources: dict[str, str] = {}  # the NodeID of the only stream that a node derives from
    for node in dag.ordered():
        found = {sources[parent] for parent in node.inputs} - {_NONE}
        if node.node_type == STREAM:
            found.add(node.node_id)
        sources[node.node_id] = _MULTI if len(found) > 1 else next(iter(found), _NONE)
    names = {_NONE: _NONE, _MULTI: _MULTI}
    for source in set(sources.values()) - names.keys():
        names[source] = _asset_of_stream(by_id[source])
    return {node_id: names[source] for node_id, source in sources.items()}


def _asset_of_stream(stream: NodeRecord) -> str:
    word = stream.params.get("instrument") or next(iter(stream.params.get("tags", ())), "") or "any"
    return re.sub(r"[^a-z0-9]+", "-", str(word).lower()).strip("-")[:32] or "any"


def topic_name(world_id: str, domain: str, asset: str, node: NodeRecord, taken: Mapping[str, str]) -> str:
    """Build a topic name that no other node has. `taken`: folded topic → NodeID."""
    digest = node.node_id.removeprefix(PREFIX)
    for length in range(8, len(digest) + 1, 2):
        topic = (
            f"{world_id}.{domain}.{asset}_{node.node_type.lower()}_{digest[:length]}_{node.schema_compat_id}"
        )
        if taken.get(folded(topic), node.node_id) == node.node_id:
            return topic
    raise QmtlError("E_INTERNAL", f"no topic name is free for {node.label}", "report this", node=node.node_id)
