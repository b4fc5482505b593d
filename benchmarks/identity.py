"""NodeIDs of 10,000 nodes, against the limit for Python.

Orjson and blake3 over the same fields, without rules.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson
from blake3 import blake3

from qmtl_sdk.contracts.identity import CanonicalNodeSpec

NODES = 10_000
ROUNDS = 5


def specs() -> list[CanonicalNodeSpec]:
    found: list[CanonicalNodeSpec] = []
    ids: list[str] = []
    for i in range(NODES):
        params = {
            "window": i,
            "band": 1.5 + i,
            "source": {"instrument": f"S{i}", "fields": ["close", "volume"]},
        }
        found.append(CanonicalNodeSpec("Node", 60, 30, params, tuple(ids[-2:]), "v1", f"blake3:{i:064x}"))
        ids.append(f"blake3:{i:064x}")
    return found


def plain(nodes: list[CanonicalNodeSpec]) -> None:
    for node in nodes:
        body = {
            "t": node.node_type,
            "i": node.interval,
            "p": node.period,
            "params": node.params,
            "d": node.dependencies,
            "s": node.schema_compat_id,
            "c": node.code_hash,
        }
        blake3(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()


def ours(nodes: list[CanonicalNodeSpec]) -> None:
    for node in nodes:
        node.node_id()


def run() -> Iterator[dict[str, Any]]:
    nodes = specs()
    rates = {
        name: NODES / best(lambda work=work: work(nodes))
        for name, work in (("qmtl", ours), ("orjson + blake3", plain))
    }  # type: ignore[misc]
    for peer, rate in rates.items():
        yield {
            "workload": "node ids",
            "peer": peer,
            "nodes": NODES,
            "nodes_per_s": round(rate),
            "ratio_to_limit": round(rate / rates["orjson + blake3"], 3),
        }


def best(work: Callable[[], object]) -> float:
    """Seconds of the median round, after one that is not counted."""
    work()
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return sorted(times)[ROUNDS // 2]
