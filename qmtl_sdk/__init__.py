"""QMTL for strategy authors: strategies, nodes, and `Runner.submit`.

    from qmtl_sdk import Node, Runner, Strategy, StreamInput

Names are loaded on first use, so that a command that only needs the contracts does not import pandas.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qmtl_sdk.contracts.errors import QmtlError
    from qmtl_sdk.contracts.stream import Subscribe
    from qmtl_sdk.data.source import CsvSource, ParquetSource
    from qmtl_sdk.nodes.node import MatchMode, Node, ProcessingNode, StreamInput, TagQueryNode
    from qmtl_sdk.nodes.strategy import Strategy
    from qmtl_sdk.nodes.view import CacheView
    from qmtl_sdk.runtime.client import GatewayClient
    from qmtl_sdk.runtime.config import settings
    from qmtl_sdk.runtime.result import SubmitResult
    from qmtl_sdk.runtime.runner import Runner
    from qmtl_sdk.runtime.stream import StreamClient
    from qmtl_sdk.transforms.publisher import TradeOrderPublisherNode

_MODULES = {
    "CacheView": "nodes.view",
    "CsvSource": "data.source",
    "GatewayClient": "runtime.client",
    "MatchMode": "nodes.node",
    "Node": "nodes.node",
    "ParquetSource": "data.source",
    "ProcessingNode": "nodes.node",
    "QmtlError": "contracts.errors",
    "Runner": "runtime.runner",
    "Strategy": "nodes.strategy",
    "StreamClient": "runtime.stream",
    "StreamInput": "nodes.node",
    "SubmitResult": "runtime.result",
    "Subscribe": "contracts.stream",
    "TagQueryNode": "nodes.node",
    "TradeOrderPublisherNode": "transforms.publisher",
    "settings": "runtime.config",
}
"""The module of each public name."""

__all__ = [
    "CacheView",
    "CsvSource",
    "GatewayClient",
    "MatchMode",
    "Node",
    "ParquetSource",
    "ProcessingNode",
    "QmtlError",
    "Runner",
    "Strategy",
    "StreamClient",
    "StreamInput",
    "SubmitResult",
    "Subscribe",
    "TagQueryNode",
    "TradeOrderPublisherNode",
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
