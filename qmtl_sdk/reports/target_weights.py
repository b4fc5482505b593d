"""Target weights as positions: which nodes have them, and the share of each instrument.

Returns have a position in -1…1 and a fixed weight for each instrument, and the weights sum to 1. A target
weight is a share of the whole strategy at a bar. So an instrument's weight is its largest target weight (its
peak) over the sum of all peaks, and its position is its target weight over its peak, times that sum: the
product is the target weight. Where the peaks sum to 1 at most, positions stay within -1…1.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from qmtl_sdk.compute.output import NodeOutput
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.nodes.node import Node, StreamInput
from qmtl_sdk.nodes.strategy import BuiltStrategy
from qmtl_sdk.transforms.columns import WEIGHT, TargetNode
from qmtl_sdk.transforms.publisher import TradeOrderPublisherNode


def target_nodes(built: BuiltStrategy, outputs: Mapping[str, NodeOutput]) -> list[Node]:
    """Return the nodes with target weights that no later node of their pipeline passes on."""
    found = [
        node
        for node in built.nodes
        if WEIGHT in outputs[node.node_id].bars.columns
        and not isinstance(node, StreamInput | TradeOrderPublisherNode)
    ]
    passed_on = {
        parent.node_id
        for node in found
        for parent in ([node.target] if isinstance(node, TargetNode) else node.inputs)
    }
    return [node for node in found if node.node_id not in passed_on]


def peaks_of(positions: Sequence[np.ndarray], built: BuiltStrategy) -> list[float]:
    """Return the largest absolute target weight of each instrument; 1 of each where all are always flat.

    Raises QmtlError: E_RETURNS_AMBIGUOUS where the strategy
    has weights besides.
    """
    if built.strategy.weights:
        raise QmtlError(
            "E_RETURNS_AMBIGUOUS",
            f"{built.name} has target weights, which are shares already, and weights=",
            "leave weights= out of add_nodes, and change the target weights",
        )
    peaks = [float(np.abs(position).max(initial=0.0)) for position in positions]
    return peaks if any(peaks) else [1.0] * len(peaks)
