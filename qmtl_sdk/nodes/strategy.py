"""A strategy: what an author writes. `setup` builds nodes and hands them over; everything else is the system's."""

import inspect
from collections.abc import Mapping, Sequence

from qmtl_sdk.contracts.dag import TAG_QUERY, Dag
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.identity import node_ids_crc32
from qmtl_sdk.nodes.node import Node, StreamInput


class Strategy:
    """Subclass it, build nodes in `setup`, pass them to `add_nodes`.

    `returns=` names the node whose output is the strategy's returns a bar; without it they follow from the nodes that have a column
    `position` (−1…1) or `signal` (0/1). `weights=` gives instruments other shares than equal ones, by their position node.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.returns_node: Node | None = None
        self.weights: dict[Node, float] = {}

    def setup(self) -> None:
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
        for node in [*nodes, *([returns] if returns else []), *(weights or {})]:
            if not isinstance(node, Node):
                raise QmtlError(
                    "E_NODE_INPUT",
                    f"add_nodes was given {node!r}, which is not a node",
                    "pass a list of nodes",
                )
        self.nodes += nodes
        self.returns_node = returns or self.returns_node
        self.weights.update(weights or {})

    @property
    def name(self) -> str:
        return type(self).__name__


class BuiltStrategy:
    """A strategy set up: its nodes in order of computation, each NodeID once, and its canonical DAG, linted."""

    def __init__(self, strategy: "Strategy | type[Strategy]") -> None:
        self.strategy = strategy() if inspect.isclass(strategy) else strategy
        if not isinstance(self.strategy, Strategy):
            raise QmtlError(
                "E_STRATEGY_FILE",
                f"{strategy!r} is not a Strategy",
                "pass a class derived from qmtl_sdk.Strategy",
            )
        if not self.strategy.nodes:
            self.strategy.setup()
        given = [
            *self.strategy.nodes,
            *self.strategy.weights,
            *([self.strategy.returns_node] if self.strategy.returns_node else []),
        ]
        self.by_id = {node.node_id: node for node in _with_inputs(given)}
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
        """What lint would have an author know."""
        return [
            f"{node.label} has a seed among its parameters: it is computed anew every time"
            for node in self.nodes
            if node.seeded
        ]


def _with_inputs(nodes: Sequence[Node]) -> list[Node]:
    """The nodes and everything that they read, inputs first. Without recursion, since a chain may be longer than Python's stack."""
    done: dict[Node, None] = {}
    stack = [(node, False) for node in reversed(nodes)]
    while stack:
        node, ready = stack.pop()
        if ready:
            done[node] = None
        elif node not in done:
            stack.append((node, True))
            stack.extend((parent, False) for parent in node.inputs)
    return list(done)
