"""The kinds of nodes that a strategy is built of.

A node says what it computes, and from which inputs. Where and when it computes is decided elsewhere.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from qmtl_sdk.contracts.canonical import flatten, hash_of
from qmtl_sdk.contracts.dag import (
    MAX_NAME,
    NODE,
    SCHEMA_COMPAT_ID,
    STREAM,
    TAG_QUERY,
    NodeRecord,
)
from qmtl_sdk.contracts.documents import validated
from qmtl_sdk.contracts.domains import ComputeContext, DeclaredClock
from qmtl_sdk.contracts.durations import bars, seconds
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.identity import CanonicalNodeSpec, require_no_context
from qmtl_sdk.nodes.code_hash import code_hash
from qmtl_sdk.nodes.view import CacheView

if TYPE_CHECKING:
    from qmtl_sdk.data.source import Source

Interval = int | str | timedelta
"""Seconds (60), or text such as "1m", "1h", "1d"."""

Period = int | str | timedelta
"""A number of bars, or a length of time that is a multiple of the interval."""

ComputeFn = Callable[[CacheView], Any]
"""A compute function; see `Node`. (Any: its author chooses among the forms of a result.)"""

_SEEDS = ("seed", "random_state", "random_seed")
"""Parameters that make a node's output depend on chance."""


class MatchMode(StrEnum):
    """Whether a queue must have one of the query's tags or all of them."""

    ANY = "any"
    ALL = "all"


class Node:
    """A computation over its inputs: `compute_fn(view)` computes one value a bar from the last `period` bars.

    `compute_fn` is a pure function of its view. Live, it is called for each bar with the last `period` bars
    of each input; over history, one call may get all bars. So it returns a value for each row, where each row
    depends only on its own bar and earlier ones, or one row for the window: the value of its last bar. A
    result whose rows depend on later rows is refused (E_LOOKAHEAD), as is a last row that has another time
    than the bar (E_OUTPUT_TIME).

    The result is a DataFrame, Series, array, mapping or number; several columns are several outputs.
    `interval` may be omitted where all inputs have the same; `period` defaults to the longest of the inputs.
    `name` and `tags` are labels and not part of the NodeID.

    Raises QmtlError: E_NODE_INPUT where an input is not a node, E_INTERVAL and E_PERIOD where those are not
    valid or can't be derived.
    """

    node_type = NODE

    def __init__(
        self,
        input: "Node | Sequence[Node] | None" = None,
        compute_fn: ComputeFn | None = None,
        *,
        name: str = "",
        interval: Interval | None = None,
        period: Period | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        schema: Mapping[str, str] | None = None,
        clock: DeclaredClock | None = None,
    ) -> None:
        self.inputs: tuple[Node, ...] = tuple([input] if isinstance(input, Node) else input or ())
        for parent in self.inputs:
            if not isinstance(parent, Node):
                raise QmtlError(
                    "E_NODE_INPUT",
                    f"{name or 'a node'} has {parent!r} as an input, which is not a node",
                    "pass nodes in input=",
                )
        self.compute_fn = compute_fn
        self.name = name
        self.tags = tuple(tags)
        self.clock = clock
        self.context: ComputeContext | None = None
        self.interval = self._interval(interval)
        self.period: int = (
            bars(period, self.interval)
            if period is not None
            else max((parent.period for parent in self.inputs), default=1)
        )
        self.params = dict(params or {})
        require_no_context(self.params, name or "a node")
        self.schema = dict(schema or {})

    def _interval(self, interval: Interval | None) -> int:
        if interval is not None:
            return seconds(interval)
        found = sorted({parent.interval for parent in self.inputs})
        if len(found) == 1:
            return found[0]
        why = (
            "has no interval"
            if not found
            else f"has inputs of different intervals ({', '.join(f'{s} s' for s in found)})"
        )
        raise QmtlError("E_INTERVAL", f"{self.name or 'a node'} {why}", "name it with interval=")

    def apply_compute_context(self, context: ComputeContext) -> None:
        """Set the context that the node computes in from now on, as the services decided it."""
        self.context = context

    @property
    def label(self) -> str:
        """The name that a person reads: the node's own, or its class's."""
        return self.name or type(self).__name__

    @property
    def seeded(self) -> bool:
        """Whether a parameter is a seed: the output is then never read from a cache."""
        return any(key.split(".")[-1] in _SEEDS for key in flatten(self.params))

    @cached_property
    def code_hash(self) -> str:
        """The hash of the compute function with all that it uses; empty for a node without one."""
        return "" if self.compute_fn is None else code_hash(self.compute_fn)

    @cached_property
    def node_id(self) -> str:
        """The hash of what the node computes; see `CanonicalNodeSpec`."""
        return self.spec.node_id()

    @property
    def spec(self) -> CanonicalNodeSpec:
        """The fields that the NodeID is a hash of."""
        return CanonicalNodeSpec(
            self.node_type,
            self.interval,
            self.period,
            self.params,
            tuple(parent.node_id for parent in self.inputs),
            SCHEMA_COMPAT_ID,
            self.code_hash,
        )

    def record(self) -> NodeRecord:
        """Return the node as it is submitted. Raises QmtlError: E_NODE_INPUT where a limit is exceeded."""
        body = {
            "node_id": self.node_id,
            "node_type": self.node_type,
            "interval": self.interval,
            "period": self.period,
            "params": self.params,
            "inputs": tuple(parent.node_id for parent in self.inputs),
            "schema_hash": hash_of(self.schema) if self.schema else "",
            "code_hash": self.code_hash,
            "name": self.name,
            "tags": self.tags,
            "clock": self.clock,
        }
        found: NodeRecord = validated(NodeRecord, body, "E_NODE_INPUT", f"node {self.label[:60]}")
        return found

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.label!r}, interval={self.interval}, period={self.period})"


class ProcessingNode(Node):
    """A Node that must have inputs and a compute function. Raises QmtlError: as Node."""

    def __init__(self, input: "Node | Sequence[Node]", compute_fn: ComputeFn, **options: Any) -> None:
        if not input:
            raise QmtlError(
                "E_NODE_INPUT",
                f"{options.get('name') or 'a ProcessingNode'} has no input",
                "pass the nodes that it reads in input=",
            )
        super().__init__(input, compute_fn, **options)


class StreamInput(Node):
    """Market data.

    `tags` choose the world's stream; `instrument` and `fields` (columns) narrow it. All three are part of the
    NodeID. `source` brings the author's own data instead of the world's; then the source's identity is part
    of it, too.
    """

    node_type = STREAM

    def __init__(
        self,
        *,
        interval: Interval,
        period: Period = 1,
        tags: Sequence[str] = (),
        source: "Source | None" = None,
        instrument: str | None = None,
        fields: Sequence[str] = (),
        name: str = "",
        clock: DeclaredClock | None = None,
    ) -> None:
        self.source = source
        selector: dict[str, Any] = {"tags": sorted(set(tags))}
        if instrument is not None:
            selector["instrument"] = instrument
        if fields:
            selector["fields"] = sorted(set(fields))
        if source is not None:
            selector["source"] = source.identity
        super().__init__(
            interval=interval,
            period=period,
            params=selector,
            name=name or "/".join([*sorted(set(tags))])[:MAX_NAME],
            tags=tags,
            clock=clock,
        )


class TagQueryNode(Node):
    """Reads every queue whose tags match.

    What the query finds changes with time; its NodeID does not. Without `compute_fn`, its output is the
    newest row of every queue that it found. Raises QmtlError: E_NODE_INPUT where there are no tags.
    """

    node_type = TAG_QUERY

    def __init__(
        self,
        *,
        query_tags: Sequence[str],
        interval: Interval,
        period: Period = 1,
        match_mode: MatchMode | str = MatchMode.ANY,
        compute_fn: ComputeFn | None = None,
        name: str = "",
    ) -> None:
        self.query_tags = tuple(sorted(set(query_tags)))
        self.match_mode = MatchMode(match_mode)
        if not self.query_tags:
            raise QmtlError(
                "E_NODE_INPUT", "a TagQueryNode without query_tags matches nothing", "name at least one tag"
            )
        length = seconds(interval)
        query = {"query_tags": list(self.query_tags), "match_mode": self.match_mode.value, "interval": length}
        super().__init__(
            compute_fn=compute_fn,
            interval=length,
            period=period,
            params=query,
            name=name or f"tags {self.match_mode.value} {'+'.join(self.query_tags)}"[:MAX_NAME],
        )
