"""QMTL for authors: a strategy, its nodes, and `Runner.submit`.

    from qmtl_sdk import Node, Runner, Strategy, StreamInput
"""

from typing import TYPE_CHECKING, Any

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.data.source import CsvSource, ParquetSource
from qmtl_sdk.nodes.node import MatchMode, Node, ProcessingNode, StreamInput, TagQueryNode
from qmtl_sdk.nodes.strategy import Strategy
from qmtl_sdk.nodes.view import CacheView

if TYPE_CHECKING:
    from qmtl_sdk.runtime.result import SubmitResult
    from qmtl_sdk.runtime.runner import Runner

__all__ = ["CacheView", "CsvSource", "MatchMode", "Node", "ParquetSource", "ProcessingNode", "QmtlError", "Runner", "Strategy", "StreamInput", "SubmitResult", "TagQueryNode"]


def __getattr__(name: str) -> Any:
    """Runner and its result are loaded when they are asked for: services import the SDK's contracts without its HTTP client. (Any: two kinds of class.)"""
    if name == "Runner":
        from qmtl_sdk.runtime.runner import Runner

        return Runner
    if name == "SubmitResult":
        from qmtl_sdk.runtime.result import SubmitResult

        return SubmitResult
    raise AttributeError(name)
