"""The node families that a strategy is built of. A node knows what it computes from; where and when it runs is not its business."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from qmtl_sdk.contracts.canonical import flatten, hash_of
from qmtl_sdk.contracts.dag import NODE, SCHEMA_COMPAT_ID, STREAM, TAG_QUERY, NodeRecord
from qmtl_sdk.contracts.domains import ComputeContext
from qmtl_sdk.contracts.durations import bars, seconds
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.identity import CanonicalNodeSpec
from qmtl_sdk.nodes.code_hash import code_hash
from qmtl_sdk.nodes.view import CacheView

if TYPE_CHECKING:
    from qmtl_sdk.data.source import Source

Interval = int | str | timedelta
ComputeFn = Callable[[CacheView], Any]
_SEEDS = ("seed", "random_state", "random_seed")


class MatchMode(StrEnum):
    """Whether a queue needs one of the tags or all of them."""

    ANY = "any"
    ALL = "all"


class Node:
    """A computation over its inputs: `compute_fn(view)` gives a value a bar from the last `period` bars of each input.

    `compute_fn` is a pure function that returns a DataFrame, Series, array or number; several columns are several outputs. `interval`
    may be left out where all inputs have the same; `period` defaults to the inputs' longest. `name` and `tags` are labels.
    """

    node_type = NODE

    def __init__(
        self,
        input: "Node | Sequence[Node] | None" = None,
        compute_fn: ComputeFn | None = None,
        *,
        name: str = "",
        interval: Interval | None = None,
        period: int | str | timedelta | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        schema: Mapping[str, str] | None = None,
        clock: Literal["virtual", "wall"] | None = None,
    ) -> None:
        self.inputs = tuple([input] if isinstance(input, Node) else input or ())
        for parent in self.inputs:
            if not isinstance(parent, Node):
                raise QmtlError(
                    "E_NODE_INPUT",
                    f"{name or 'a node'} has {parent!r} as an input, which is not a node",
                    "pass nodes in input=",
                )
        self.compute_fn, self.name, self.tags, self.clock = compute_fn, name, tuple(tags), clock
        self.context: ComputeContext | None = None
        self.interval = self._interval(interval)
        self.period = (
            bars(period, self.interval)
            if period is not None
            else max((parent.period for parent in self.inputs), default=1)
        )
        self.params = dict(params or {})
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
        raise QmtlError("E_INTERVAL", f"{self.name or 'a node'} {why}", "say which with interval=")

    def apply_compute_context(self, context: ComputeContext) -> None:
        """Where it computes from now on, as the services decided it."""
        self.context = context

    @property
    def label(self) -> str:
        """What a person calls the node."""
        return self.name or type(self).__name__

    @property
    def seeded(self) -> bool:
        """Whether a seed is among its parameters: then its output is never served from a cache."""
        return any(key.split(".")[-1] in _SEEDS for key in flatten(self.params))

    @cached_property
    def code_hash(self) -> str:
        if self.compute_fn is None:
            return ""
        return code_hash(self.compute_fn)

    @cached_property
    def node_id(self) -> str:
        return self.spec.node_id()

    @property
    def spec(self) -> CanonicalNodeSpec:
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
        """The node as it is submitted."""
        return NodeRecord(
            node_id=self.node_id,
            node_type=self.node_type,
            interval=self.interval,
            period=self.period,
            params=self.params,
            inputs=tuple(parent.node_id for parent in self.inputs),
            schema_hash=hash_of(self.schema) if self.schema else "",
            code_hash=self.code_hash,
            name=self.name,
            tags=self.tags,
            clock=self.clock,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.label!r}, interval={self.interval}, period={self.period})"


class ProcessingNode(Node):
    """A Node that must have inputs and a compute function."""

    def __init__(self, input: "Node | Sequence[Node]", compute_fn: ComputeFn, **options: Any) -> None:
        if not input:
            raise QmtlError(
                "E_NODE_INPUT",
                f"{options.get('name') or 'a ProcessingNode'} has no input",
                "pass the nodes that it reads in input=",
            )
        super().__init__(input, compute_fn, **options)


class StreamInput(Node):
    """Market data. `tags` choose the world's stream; they are part of what the node is. A `source` of one's own takes the world's place."""

    node_type = STREAM

    def __init__(
        self,
        *,
        interval: Interval,
        period: int | str | timedelta = 1,
        tags: Sequence[str] = (),
        source: "Source | None" = None,
        instrument: str | None = None,
        fields: Sequence[str] = (),
        name: str = "",
        clock: Literal["virtual", "wall"] | None = None,
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
            name=name or "/".join([*sorted(set(tags))]),
            tags=tags,
            clock=clock,
        )


class TagQueryNode(Node):
    """Every queue whose tags match. What the query finds changes with time; its NodeID does not."""

    node_type = TAG_QUERY

    def __init__(
        self,
        *,
        query_tags: Sequence[str],
        interval: Interval,
        period: int | str | timedelta = 1,
        match_mode: MatchMode | str = MatchMode.ANY,
        compute_fn: ComputeFn | None = None,
        name: str = "",
    ) -> None:
        self.query_tags, self.match_mode = tuple(sorted(set(query_tags))), MatchMode(match_mode)
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
            name=name or f"tags {self.match_mode.value} {'+'.join(self.query_tags)}",
        )
