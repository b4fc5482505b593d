"""QMTL for strategy authors: strategies, nodes, and `Runner.submit`.

    from qmtl_sdk import Node, Runner, Strategy, StreamInput

Names are loaded on first use, so that a command that only needs the contracts does not import pandas.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qmtl_sdk.brokerage.models import ExecutionModel, FillModel
    from qmtl_sdk.contracts.errors import QmtlError
    from qmtl_sdk.contracts.stream import Subscribe
    from qmtl_sdk.data.source import CsvSource, ParquetSource
    from qmtl_sdk.nodes.node import MatchMode, Node, ProcessingNode, StreamInput, TagQueryNode
    from qmtl_sdk.nodes.strategy import Strategy
    from qmtl_sdk.nodes.view import CacheView
    from qmtl_sdk.nodesets.recipes import (
        INTENT_FIRST_DEFAULT_THRESHOLDS,
        IntentFirstAdapter,
        make_intent_first_nodeset,
    )
    from qmtl_sdk.runtime.client import GatewayClient
    from qmtl_sdk.runtime.config import settings
    from qmtl_sdk.runtime.result import SubmitResult
    from qmtl_sdk.runtime.runner import Runner
    from qmtl_sdk.runtime.stream import StreamClient
    from qmtl_sdk.transforms.execution import ExecutionNode, SizingNode
    from qmtl_sdk.transforms.position_target import PositionTargetNode, Thresholds
    from qmtl_sdk.transforms.publisher import TradeOrderPublisherNode
    from qmtl_sdk.transforms.risk import RiskControlNode, RiskLimits
    from qmtl_sdk.transforms.timing import TimingGateNode

_MODULES = {
    "CacheView": "nodes.view",
    "CsvSource": "data.source",
    "ExecutionModel": "brokerage.models",
    "ExecutionNode": "transforms.execution",
    "FillModel": "brokerage.models",
    "GatewayClient": "runtime.client",
    "INTENT_FIRST_DEFAULT_THRESHOLDS": "nodesets.recipes",
    "IntentFirstAdapter": "nodesets.recipes",
    "MatchMode": "nodes.node",
    "Node": "nodes.node",
    "ParquetSource": "data.source",
    "PositionTargetNode": "transforms.position_target",
    "ProcessingNode": "nodes.node",
    "QmtlError": "contracts.errors",
    "RiskControlNode": "transforms.risk",
    "RiskLimits": "transforms.risk",
    "Runner": "runtime.runner",
    "SizingNode": "transforms.execution",
    "Strategy": "nodes.strategy",
    "StreamClient": "runtime.stream",
    "StreamInput": "nodes.node",
    "SubmitResult": "runtime.result",
    "Subscribe": "contracts.stream",
    "TagQueryNode": "nodes.node",
    "Thresholds": "transforms.position_target",
    "TimingGateNode": "transforms.timing",
    "TradeOrderPublisherNode": "transforms.publisher",
    "make_intent_first_nodeset": "nodesets.recipes",
    "settings": "runtime.config",
}
"""The module of each public name."""

__all__ = [
    "INTENT_FIRST_DEFAULT_THRESHOLDS",
    "CacheView",
    "CsvSource",
    "ExecutionModel",
    "ExecutionNode",
    "FillModel",
    "GatewayClient",
    "IntentFirstAdapter",
    "MatchMode",
    "Node",
    "ParquetSource",
    "PositionTargetNode",
    "ProcessingNode",
    "QmtlError",
    "RiskControlNode",
    "RiskLimits",
    "Runner",
    "SizingNode",
    "Strategy",
    "StreamClient",
    "StreamInput",
    "SubmitResult",
    "Subscribe",
    "TagQueryNode",
    "Thresholds",
    "TimingGateNode",
    "TradeOrderPublisherNode",
    "make_intent_first_nodeset",
    "settings",
]


def __getattr__(name: str) -> Any:
    """Load a public name. (Any: each has its own type, which the imports above give to type checkers.)"""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names, for completion."""
    return [*__all__]
