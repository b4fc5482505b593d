"""A strategy: an author's class whose `setup` builds nodes, and the DAG that follows from them."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Protocol

from qmtl_sdk.contracts.dag import TAG_QUERY, Dag, upstream
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.identity import node_ids_crc32
from qmtl_sdk.nodes.node import Node, StreamInput


class HasNodes(Protocol):
    """A set of nodes, such as `qmtl_sdk.nodesets.recipes.NodeSet`."""

    @property
    def nodes(self) -> Sequence[Node]: ...


class Strategy:
    """The base class of strategies: build nodes in `setup` and pass them to `add_nodes`.

    `world_id` is the world that the strategy is submitted to. No compute function may use it: the same
    strategy has the same identity in every world.
    """

    world_id = ""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.returns_node: Node | None = None
        self.weights: dict[Node, float] = {}

    def setup(self) -> None:
        """Build the nodes. Raises QmtlError: E_DAG_EMPTY where a subclass does not define it."""
        raise QmtlError(
            "E_DAG_EMPTY",
            f"{type(self).__name__} has no setup()",
            "define setup() and call self.add_nodes([...]) in it",
        )

    def add_nodes(
        self,
        nodes: Sequence[Node],
        *,
        returns: Node | None = None,
        weights: Mapping[Node, float] | None = None,
    ) -> None:
        """Add nodes to the strategy.

        `returns`: the node whose output is the strategy's return of each bar, as a fraction. Without it,
        returns follow from the nodes with a column `position` (-1…1) or `signal` (0 or 1). `weights`: the
        shares of instruments, by their position node; equal without it. Raises QmtlError: E_NODE_INPUT where
        one is not a node.
        """
        for node in [*nodes, *([returns] if returns else []), *(weights or {})]:
            if not isinstance(node, Node):
                raise QmtlError(
                    "E_NODE_INPUT",
                    f"add_nodes received {node!r}, which is not a node",
                    "pass a list of nodes",
                )
        self.nodes += nodes
        self.returns_node = returns or self.returns_node
        self.weights.update(weights or {})

    def add_nodeset(self, nodeset: HasNodes) -> None:
        """Add the nodes of a set. Raises QmtlError: E_NODE_INPUT where it has none."""
        nodes = getattr(nodeset, "nodes", None)
        if not nodes:
            raise QmtlError(
                "E_NODE_INPUT",
                f"add_nodeset received {nodeset!r}, which has no nodes",
                "pass a node set, such as make_intent_first_nodeset(…)",
            )
        self.add_nodes(nodes)

    @property
    def name(self) -> str:
        """The name that a person reads: the class's."""
        return type(self).__name__

    def __repr__(self) -> str:
        return f"{self.name}({len(self.nodes)} nodes)"


class BuiltStrategy:
    """A strategy after `setup`: its nodes in the order of computation, each NodeID once, and its checked DAG.

    `world_id`: the world that `setup` is told.

    Raises QmtlError: E_STRATEGY_FILE where it is not a Strategy, E_NODE_INPUT where a node has no compute
    function, and as `Dag.lint`.
    """

    def __init__(self, strategy: "Strategy | type[Strategy]", world_id: str = "") -> None:
        self.strategy = strategy() if inspect.isclass(strategy) else strategy
        if not isinstance(self.strategy, Strategy):
            raise QmtlError(
                "E_STRATEGY_FILE",
                f"{strategy!r} is not a Strategy",
                "pass a class derived from qmtl_sdk.Strategy",
            )
        if not self.strategy.nodes:
            self.strategy.world_id = world_id
            self.strategy.setup()
        given = [
            *self.strategy.nodes,
            *self.strategy.weights,
            *([self.strategy.returns_node] if self.strategy.returns_node else []),
        ]
        self.by_id = {node.node_id: node for node in upstream(given, lambda node: node.inputs)}
        for node in self.by_id.values():
            if node.compute_fn is None and not isinstance(node, StreamInput) and node.node_type != TAG_QUERY:
                raise QmtlError(
                    "E_NODE_INPUT",
                    f"{node.label} has no compute_fn",
                    "pass compute_fn=, or make it a StreamInput",
                )
        returns = self.strategy.returns_node
        records = tuple(node.record() for node in self.by_id.values())
        weights = {node.node_id: float(weight) for node, weight in self.strategy.weights.items()}
        self.dag = Dag(nodes=records, returns=returns.node_id if returns else None, weights=weights)
        self.dag.lint()
        self.nodes = [self.by_id[record.node_id] for record in self.dag.ordered()]

    @property
    def name(self) -> str:
        return self.strategy.name

    @property
    def crc32(self) -> int:
        return node_ids_crc32(self.dag.node_ids)

    @property
    def warnings(self) -> list[str]:
        """What an author should know, though nothing is refused."""
        return [
            f"{node.label} has a seed among its parameters: it is computed again every time"
            for node in self.nodes
            if node.seeded
        ]
