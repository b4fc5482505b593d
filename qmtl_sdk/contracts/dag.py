"""The canonical DAG of a submission, and the lint that it must pass.

1. Each NodeID is defined once (single assignment), each input is defined, nothing depends on itself, all nodes have one clock.
2. `Dag.verify` recomputes every NodeID and the CRC, and names the node, what was expected and what came.
3. `ordered` gives the nodes so that inputs come first; the order among equals is the order of NodeIDs, so it is one for one DAG.
"""

import heapq
from collections import defaultdict
from typing import Any, Literal

from pydantic import Field

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.identity import PREFIX, CanonicalNodeSpec, node_ids_crc32, strategy_id
from qmtl_sdk.contracts.model import Model

SCHEMA_COMPAT_ID = "v1"
STREAM, NODE, TAG_QUERY = "StreamInput", "Node", "TagQueryNode"


class NodeRecord(Model):
    """A node as it is submitted. `name` and `tags` are labels: they never enter the NodeID."""

    node_id: str = Field(max_length=128)
    node_type: str = Field(min_length=1, max_length=64)
    interval: int = Field(gt=0, description="seconds")
    period: int = Field(gt=0, description="bars")
    params: dict[str, Any] = {}
    inputs: tuple[str, ...] = ()
    schema_compat_id: str = Field(SCHEMA_COMPAT_ID, max_length=64)
    schema_hash: str = Field(
        "", max_length=128, description="the output's schema; a minor change keeps the NodeID"
    )
    code_hash: str = Field("", max_length=128)
    name: str = Field("", max_length=200)
    tags: tuple[str, ...] = ()
    clock: Literal["virtual", "wall"] | None = None

    def spec(self) -> CanonicalNodeSpec:
        return CanonicalNodeSpec(
            self.node_type,
            self.interval,
            self.period,
            self.params,
            self.inputs,
            self.schema_compat_id,
            self.code_hash,
        )

    @property
    def label(self) -> str:
        """What a person calls the node."""
        return self.name or self.node_id[:15]


class Dag(Model):
    """Nodes, the node that carries the returns (if the strategy names one) and the instruments' weights by NodeID."""

    schema_version: Literal[1] = 1
    nodes: tuple[NodeRecord, ...] = Field((), max_length=5000)
    returns: str | None = None
    weights: dict[str, float] = {}

    @property
    def strategy_id(self) -> str:
        return strategy_id(self.node_ids, self.edges)

    @property
    def node_ids(self) -> list[str]:
        return [node.node_id for node in self.nodes]

    @property
    def edges(self) -> list[tuple[str, str]]:
        return [(parent, node.node_id) for node in self.nodes for parent in node.inputs]

    def ordered(self) -> list[NodeRecord]:
        """Inputs first. Raises QmtlError: E_DAG_CYCLE, with the nodes on the cycle."""
        by_id = {node.node_id: node for node in self.nodes}
        waits = {node.node_id: len(set(node.inputs)) for node in self.nodes}
        readers: dict[str, list[str]] = defaultdict(list)
        for node in self.nodes:
            for parent in set(node.inputs):
                readers[parent].append(node.node_id)
        ready = [node_id for node_id, count in waits.items() if count == 0]
        heapq.heapify(ready)
        done: list[NodeRecord] = []
        while ready:
            node_id = heapq.heappop(ready)
            done.append(by_id[node_id])
            for reader in readers[node_id]:
                waits[reader] -= 1
                if waits[reader] == 0:
                    heapq.heappush(ready, reader)
        if len(done) < len(by_id):
            stuck = sorted(by_id[node_id].label for node_id, count in waits.items() if count)
            raise QmtlError(
                "E_DAG_CYCLE",
                f"the DAG has a cycle through {', '.join(stuck[:5])}",
                "let no node depend on its own output",
                nodes=stuck[:20],
            )
        return done

    def lint(self) -> None:
        """Raise QmtlError for the first rule that is broken."""
        if not self.nodes:
            raise QmtlError(
                "E_DAG_EMPTY", "the DAG has no nodes", "add nodes in setup() with self.add_nodes([...])"
            )
        seen: set[str] = set()
        for node in self.nodes:
            if node.node_id in seen:
                raise QmtlError(
                    "E_DAG_ASSIGNED_TWICE",
                    f"{node.label} is defined twice",
                    "send each node once",
                    node=node.node_id,
                )
            seen.add(node.node_id)
        for node in self.nodes:
            for parent in node.inputs:
                if parent not in seen:
                    raise QmtlError(
                        "E_DAG_INPUT_UNDEFINED",
                        f"{node.label} reads {parent[:15]}, which is not in the DAG",
                        "add the input's node too",
                        node=node.node_id,
                        input=parent,
                    )
        self.ordered()
        clocks = {node.clock: node.label for node in self.nodes if node.clock}
        if len(clocks) > 1:
            named = " and ".join(f"{label} ({clock})" for clock, label in sorted(clocks.items()))
            raise QmtlError(
                "E_DAG_MIXED_CLOCKS", f"the DAG mixes clocks: {named}", "declare one clock, or none"
            )
        for node_id in [*self.weights, *([self.returns] if self.returns else [])]:
            if node_id not in seen:
                raise QmtlError(
                    "E_DAG_RETURNS",
                    f"returns or weights name {node_id[:15]}, which is not in the DAG",
                    "name a node that add_nodes was given",
                    node=node_id,
                )

    def verify(self, crc32: int) -> None:
        """Recompute every NodeID and the CRC. Raises QmtlError: E_NODE_ID_FIELDS, E_SCHEMA_COMPAT_MISMATCH, E_NODE_ID_MISMATCH, E_CHECKSUM_MISMATCH."""
        for node in self.nodes:
            missing = [
                name
                for name in ("node_id", "code_hash")
                if not getattr(node, name) and not (name == "code_hash" and node.node_type != NODE)
            ]
            if missing or not node.node_id.startswith(PREFIX):
                field = missing[0] if missing else "node_id"
                raise QmtlError(
                    "E_NODE_ID_FIELDS",
                    f"{node.label}: {field} is missing or malformed",
                    "build the DAG with the SDK, which fills it in",
                    node=node.node_id,
                    field=field,
                    node_type=node.node_type,
                )
            if node.schema_compat_id != SCHEMA_COMPAT_ID:
                raise QmtlError(
                    "E_SCHEMA_COMPAT_MISMATCH",
                    f"{node.label} has schema_compat_id {node.schema_compat_id!r}, the service has {SCHEMA_COMPAT_ID!r}",
                    "use an SDK of the same major schema version",
                    node=node.node_id,
                    expected=SCHEMA_COMPAT_ID,
                    received=node.schema_compat_id,
                )
            expected = node.spec().node_id()
            if node.node_id != expected:
                raise QmtlError(
                    "E_NODE_ID_MISMATCH",
                    f"{node.label}: the NodeID does not follow from its fields",
                    "rebuild the DAG with the SDK; NodeIDs are never written by hand",
                    node=node.node_id,
                    node_type=node.node_type,
                    expected=expected,
                    received=node.node_id,
                )
        expected_crc = node_ids_crc32(self.node_ids)
        if crc32 != expected_crc:
            raise QmtlError(
                "E_CHECKSUM_MISMATCH",
                f"node_ids_crc32 is {crc32}, the NodeIDs give {expected_crc}",
                "send the DAG again; it changed on its way",
                expected=expected_crc,
                received=crc32,
            )
