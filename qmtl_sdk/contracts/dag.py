"""The canonical DAG of a submission, the rules that it must meet, and the walk over what a node reads.

1. `Dag.lint`: each NodeID is defined once, each input is defined, no node depends on itself, all nodes have
   one clock.
2. `Dag.verify` recomputes every NodeID and the CRC; an error names the node, the expected and the received
   value.
3. `Dag.ordered` sorts the nodes so that inputs come first. Ties are broken by NodeID, so that the order is
   unique.
4. `upstream` lists everything that nodes read, directly or through others.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, Protocol, Self, TypeVar

from pydantic import Field, TypeAdapter, model_validator

from qmtl_sdk.contracts.canonical import depth_exceeds
from qmtl_sdk.contracts.clocks import declared_clock
from qmtl_sdk.contracts.domains import DeclaredClock
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.identity import (
    PREFIX,
    CanonicalNodeSpec,
    node_ids_crc32,
    require_no_context,
    strategy_id,
)
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.texts import Identifier, PlainLine

SCHEMA_COMPAT_ID = "v1"
"""The major version of the nodes' output schema. A change of it changes every NodeID."""

STREAM = "StreamInput"
"""The type of a node that is market data."""

NODE = "Node"
"""The type of a node that computes over its inputs."""

TAG_QUERY = "TagQueryNode"
"""The type of a node that reads every queue with matching tags."""


MAX_NAME = 200
"""Characters of a node's name."""

MAX_TAG = 64
"""Characters of a tag."""

MAX_TAGS = 16
"""Tags of a node or of a tag query: their names are joined into the subject of an event."""

MAX_INTERVAL_S = 366 * 86_400
"""Seconds of the longest bar: a leap year."""

MAX_PERIOD = 10_000_000
"""Bars of the longest window: 19 years of minutes."""

MAX_NODES = 5000
"""Nodes of a DAG, and inputs of a node."""

MAX_PARAMS = 200
"""Parameters of a node."""

MAX_PARAM_DEPTH = 16
"""Levels of lists and mappings in a node's parameters."""

Tags = Annotated[
    tuple[Annotated[PlainLine, Field(min_length=1, max_length=MAX_TAG)], ...], Field(max_length=MAX_TAGS)
]
_TAGS: TypeAdapter[Tags] = TypeAdapter(Tags)


class _HasNodeId(Protocol):
    @property
    def node_id(self) -> str: ...


_N = TypeVar("_N", bound=_HasNodeId)


def upstream(nodes: Iterable[_N], inputs_of: Callable[[_N], Iterable[_N]]) -> list[_N]:
    """Return the nodes and everything that they read, directly or through others.

    Each NodeID occurs once, inputs first. Without recursion, since a chain may be longer than Python's stack;
    the walk compares objects, since the NodeID of a Node is computed from those of its inputs.
    """
    done: list[_N] = []
    entered: set[int] = set()
    stack = [(node, False) for node in reversed(list(nodes))]
    while stack:
        node, inputs_done = stack.pop()
        if inputs_done:
            done.append(node)
        elif id(node) not in entered:
            entered.add(id(node))
            stack.append((node, True))
            stack.extend((parent, False) for parent in inputs_of(node))
    return list({node.node_id: node for node in done}.values())


class NodeRecord(Model):
    """A node as it is submitted. `name` and `tags` are labels: they never enter the NodeID."""

    node_id: Identifier
    node_type: PlainLine = Field(min_length=1, max_length=64)
    interval: int = Field(gt=0, le=MAX_INTERVAL_S, description="seconds")
    period: int = Field(gt=0, le=MAX_PERIOD, description="bars")
    params: dict[Annotated[str, Field(max_length=128)], Any] = Field({}, max_length=MAX_PARAMS)
    inputs: tuple[Identifier, ...] = Field((), max_length=MAX_NODES)
    schema_compat_id: PlainLine = Field(SCHEMA_COMPAT_ID, max_length=64)
    schema_hash: PlainLine = Field(
        "", max_length=128, description="the output's schema; a minor change keeps the NodeID"
    )
    code_hash: PlainLine = Field("", max_length=128)
    name: PlainLine = Field("", max_length=MAX_NAME)
    tags: Tags = ()
    clock: DeclaredClock | None = None

    @model_validator(mode="after")
    def _params_within_limits(self) -> Self:
        """Check the depth of the parameters, and those that select queues and streams."""
        if depth_exceeds(self.params, MAX_PARAM_DEPTH):
            raise ValueError(f"params are nested deeper than {MAX_PARAM_DEPTH} levels")
        if self.node_type == TAG_QUERY and "query_tags" in self.params:
            _TAGS.validate_python(self.params["query_tags"])
        if self.node_type == STREAM:
            _TAGS.validate_python(self.params.get("tags", ()))
            if not isinstance(self.params.get("instrument"), str | None):
                raise ValueError("params.instrument is not text")
        return self

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
        """The name that a person reads: the node's own, or the beginning of its NodeID."""
        return self.name or self.node_id[:15]


class Dag(Model):
    """The nodes of a strategy.

    `returns`: the node that holds the returns, if the strategy names one. `weights`: shares of instruments,
    by NodeID.
    """

    schema_version: Literal[1] = 1
    nodes: tuple[NodeRecord, ...] = Field((), max_length=MAX_NODES)
    returns: Identifier | None = None
    weights: dict[Identifier, Annotated[float, Field(ge=-1e9, le=1e9)]] = Field({}, max_length=MAX_NODES)

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
        """Return the nodes, inputs first. Raises QmtlError: E_DAG_CYCLE, with the nodes on the cycle."""
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
                "remove the input that leads back to its own node",
                nodes=stuck[:20],
            )
        return done

    def lint(self) -> None:
        """Check the rules that need no NodeID recomputed.

        Raises QmtlError for the first broken rule: E_DAG_EMPTY, E_DAG_ASSIGNED_TWICE, E_DAG_INPUT_UNDEFINED,
        E_DAG_CYCLE, E_DAG_MIXED_CLOCKS, E_DAG_RETURNS.
        """
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
        declared_clock(self.nodes)
        for node_id in [*self.weights, *([self.returns] if self.returns else [])]:
            if node_id not in seen:
                raise QmtlError(
                    "E_DAG_RETURNS",
                    f"returns or weights name {node_id[:15]}, which is not in the DAG",
                    "name a node that add_nodes was given",
                    node=node_id,
                )

    def verify(self, crc32: int) -> None:
        """Recompute every NodeID and the CRC.

        Raises QmtlError: E_NODE_ID_FIELDS, E_SCHEMA_COMPAT_MISMATCH, E_NODE_ID_MISMATCH, E_CHECKSUM_MISMATCH.
        """
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
                    "build the DAG with the SDK, which sets it",
                    node=node.node_id,
                    field=field,
                    node_type=node.node_type,
                )
            if node.schema_compat_id != SCHEMA_COMPAT_ID:
                raise QmtlError(
                    "E_SCHEMA_COMPAT_MISMATCH",
                    f"{node.label} has schema_compat_id {node.schema_compat_id!r}, "
                    f"the service has {SCHEMA_COMPAT_ID!r}",
                    "use an SDK of the same major schema version",
                    node=node.node_id,
                    expected=SCHEMA_COMPAT_ID,
                    received=node.schema_compat_id,
                )
            require_no_context(node.params, node.label, node.node_id)
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
                "send the DAG again; it changed in transit",
                expected=expected_crc,
                received=crc32,
            )
