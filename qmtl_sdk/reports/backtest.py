"""A strategy's published targets, run over its bars into orders, fills, positions, cash and equity.

This simulation is the only place where orders follow from targets, and the only user of execution models.
"""

from collections.abc import Iterator, Mapping
from decimal import Decimal

import numpy as np

from qmtl_sdk.brokerage.models import ExecutionModel
from qmtl_sdk.brokerage.simulation import CloseEvent, Simulation, close_events
from qmtl_sdk.brokerage.targets import CloseTarget
from qmtl_sdk.compute.output import NodeOutput
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.data.bars import Bars
from qmtl_sdk.nodes.strategy import BuiltStrategy
from qmtl_sdk.transforms.execution import model_of
from qmtl_sdk.transforms.publisher import TradeOrderPublisherNode

INITIAL_CASH = Decimal(100_000)
"""The cash of an account that names none."""


def backtest(
    built: BuiltStrategy, outputs: Mapping[str, NodeOutput], initial_cash: Decimal = INITIAL_CASH
) -> Simulation:
    """Run what a strategy's publishers published over the bars of their price streams.

    `outputs`: the computed outputs of all nodes, by NodeID. Orders are sent and filled by each target's
    execution model. Raises QmtlError: E_NODE_INPUT where the strategy publishes nothing or a symbol twice, or
    a symbol has no price stream, E_EXECUTION and E_COMPUTE_OUTPUT.
    """
    return Simulation(initial_cash, execution_models(built)).run(events_of(built, outputs))


def events_of(built: BuiltStrategy, outputs: Mapping[str, NodeOutput]) -> Iterator[CloseEvent]:
    """Yield the closes of a strategy's price streams with the targets that it published there.

    Raises QmtlError: as `backtest`.
    """
    bars: dict[str, Bars] = {}
    targets: list[tuple[int, CloseTarget]] = []
    for publisher in _publishers(built):
        markets = publisher.markets()
        for symbol, stream in markets.values():
            if symbol in bars or stream not in outputs:
                why = "is published twice" if symbol in bars else "has no price stream of its own"
                raise QmtlError(
                    "E_NODE_INPUT",
                    f"{built.name}: {symbol} {why}",
                    "give each symbol one publisher, and a SizingNode with its price",
                )
            bars[symbol] = outputs[stream].bars
        targets += _targets(publisher, outputs[publisher.node_id], markets)
    return close_events(bars, targets)


def execution_models(built: BuiltStrategy) -> dict[str, ExecutionModel]:
    """Return how the orders of each symbol are sent and filled."""
    return {
        symbol: model_of(publisher.sources.get(key) or publisher.inputs[0])
        for publisher in _publishers(built)
        for key, (symbol, _) in publisher.markets().items()
    }


def _publishers(built: BuiltStrategy) -> list[TradeOrderPublisherNode]:
    found = [node for node in built.nodes if isinstance(node, TradeOrderPublisherNode)]
    if not found:
        raise QmtlError(
            "E_NODE_INPUT",
            f"{built.name} publishes no targets",
            "add a TradeOrderPublisherNode, or a node set",
        )
    return found


def _targets(
    publisher: TradeOrderPublisherNode, output: NodeOutput, markets: Mapping[str, tuple[str, str]]
) -> Iterator[tuple[int, CloseTarget]]:
    names = list(output.bars.columns)
    rows = np.column_stack([output.bars.columns[name] for name in names])
    for close, row in zip(output.bars.closes.tolist(), rows.tolist(), strict=True):
        for key, values in publisher.rows(dict(zip(names, row, strict=True))).items():
            target = publisher.target(markets[key][0], values)
            if target is not None:
                yield close, target
