"""The intent-first pipeline: a signal becomes a target, which is published.

Returns are measured on targets. A running strategy sends them, and the service orders what is missing.

`make_intent_first_nodeset` builds the standard steps of one instrument:

1. pre-trade: the signal's target weight (`PositionTargetNode`), within limits and hours where they are given;
2. sizing: the instrument with its reference price (`SizingNode`);
3. execution: how a backtest sends and fills its orders (`ExecutionNode`);
4. publish: the row of the target (`TradeOrderPublisherNode`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TypedDict, Unpack

from qmtl_sdk.brokerage.models import ExecutionModel
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.nodes.node import Node, Period
from qmtl_sdk.transforms.execution import ExecutionNode, SizingNode
from qmtl_sdk.transforms.position_target import DEFAULT_THRESHOLDS, MEMORY, PositionTargetNode, Thresholds
from qmtl_sdk.transforms.publisher import TradeOrderPublisherNode
from qmtl_sdk.transforms.risk import RiskControlNode, RiskLimits
from qmtl_sdk.transforms.timing import Moment, TimingGateNode

INTENT_FIRST_DEFAULT_THRESHOLDS = DEFAULT_THRESHOLDS
"""The thresholds of a pipeline that names none."""


class IntentFirstOptions(TypedDict, total=False):
    """The keyword arguments of `make_intent_first_nodeset` besides `symbol` and `price_node`."""

    thresholds: Thresholds | Mapping[str, float]
    long_weight: float
    short_weight: float
    period: Period
    initial_cash: float | Decimal | None
    execution_model: ExecutionModel | None
    risk: RiskLimits | None
    calendar: str | None
    blackouts: tuple[tuple[Moment, Moment], ...]


@dataclass(frozen=True)
class NodeSet:
    """Nodes that belong together, by the name of their step.

    `world_id` is a note for people, and no part of an identity.
    """

    symbol: str
    steps: Mapping[str, Node]
    world_id: str = ""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes, in the order of their steps."""
        return tuple(self.steps.values())

    def __iter__(self) -> Iterator[Node]:
        """Raise QmtlError (E_NODE_INPUT): a node set was passed for a list of nodes, as to `add_nodes`."""
        raise QmtlError(
            "E_NODE_INPUT",
            f"the node set of {self.symbol} is not a list of nodes",
            "use add_nodeset(…), or its .nodes",
        )


def make_intent_first_nodeset(
    signal: Node,
    world_id: str = "",
    *,
    symbol: str,
    price_node: Node,
    **options: Unpack[IntentFirstOptions],
) -> NodeSet:
    """Build the pipeline of one instrument; pass it to `Strategy.add_nodeset`.

    `thresholds`, `long_weight`, `short_weight` and `period`: as `PositionTargetNode` (`short_weight=0` is
    long only). `initial_cash`: as `SizingNode`. `execution_model`: as `ExecutionNode`. `risk` (without
    `max_gross`, which needs a portfolio), `calendar` and `blackouts`: limits and hours, as `RiskControlNode`
    and `TimingGateNode`, which holds a target for `period` bars as well.
    `world_id` changes no node: the same strategy has the same identity in every world.

    Raises QmtlError: E_NODE_OPTION and E_NODE_INPUT, as the nodes.
    """
    unknown = sorted(options.keys() - IntentFirstOptions.__annotations__.keys())
    if unknown:
        raise QmtlError(
            "E_NODE_OPTION",
            f"the pipeline of {symbol or 'an instrument'} has no option {', '.join(unknown)}",
            f"it has: {', '.join(IntentFirstOptions.__annotations__)}",
        )
    period = options.get("period", MEMORY)
    steps: dict[str, Node] = {}
    steps["target"] = PositionTargetNode(
        signal,
        options.get("thresholds", INTENT_FIRST_DEFAULT_THRESHOLDS),
        long_weight=options.get("long_weight", 1.0),
        short_weight=options.get("short_weight", -1.0),
        period=period,
        name=f"{symbol} target",
    )
    last = steps["target"]
    risk = options.get("risk")
    if isinstance(risk, RiskLimits) and risk.max_gross is not None:
        raise QmtlError(
            "E_NODE_OPTION",
            f"the pipeline of {symbol} is of one instrument, and max_gross adds up a portfolio",
            "leave max_gross out, or build the nodes yourself: RiskControlNode(…, portfolio=[…])",
        )
    calendar = options.get("calendar")
    blackouts = options.get("blackouts", ())
    if risk is not None:
        last = steps["risk"] = RiskControlNode(last, risk, price=price_node, name=f"{symbol} risk")
    if calendar is not None or blackouts:
        last = steps["timing"] = TimingGateNode(
            last, calendar=calendar, blackouts=blackouts, period=period, name=f"{symbol} timing"
        )
    last = steps["sizing"] = SizingNode(
        last, price_node, symbol=symbol, initial_cash=options.get("initial_cash"), name=f"{symbol} sizing"
    )
    last = steps["execution"] = ExecutionNode(
        last, options.get("execution_model"), name=f"{symbol} execution"
    )
    steps["publish"] = TradeOrderPublisherNode(last, symbol=symbol, name=f"{symbol} orders")
    return NodeSet(symbol, steps, world_id)


@dataclass(frozen=True)
class IntentFirstAdapter:
    """A pipeline whose inputs are bound later: its instrument and options, without signal and price.

    Whoever has the nodes calls `bind`. `inputs` names them.
    """

    symbol: str
    options: IntentFirstOptions = field(default_factory=IntentFirstOptions)

    inputs = ("signal", "price")

    def bind(self, nodes: Mapping[str, Node], world_id: str = "") -> NodeSet:
        """Build the pipeline over these nodes, by the names of `inputs`.

        Raises QmtlError: E_NODE_INPUT where one is missing or unknown, and as `make_intent_first_nodeset`.
        """
        if set(nodes) != set(self.inputs):
            raise QmtlError(
                "E_NODE_INPUT",
                f"the pipeline of {self.symbol} was bound to {', '.join(sorted(nodes)) or 'nothing'}",
                f"bind exactly: {', '.join(self.inputs)}",
            )
        return make_intent_first_nodeset(
            nodes["signal"], world_id, symbol=self.symbol, price_node=nodes["price"], **self.options
        )
