"""Who a node is: NodeID, ComputeKey, EvalKey, the CRC of a submission, strategy_id. One builder serves SDK and services.

A NodeID says what is computed and nothing of where, when, by whom or under which name. A ComputeKey adds where (world, domain,
as_of, partition); an EvalKey adds under which contract. Only services derive the last two.
"""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qmtl_sdk.contracts.canonical import canonical_json, content_hash, flatten, hash_of, hash_parts

PREFIX = "blake3:"


@dataclass(frozen=True, slots=True)
class CanonicalNodeSpec:
    """What a NodeID is made of, and nothing else.

    `interval` is in seconds, `period` in bars; `dependencies` are NodeIDs, in any order; `schema_compat_id` names the major version of
    the output's schema; `code_hash` stands for the compute function with its closure.
    """

    node_type: str
    interval: int
    period: int
    params: Mapping[str, Any] = field(default_factory=dict)
    dependencies: tuple[str, ...] = ()
    schema_compat_id: str = "v1"
    code_hash: str = ""

    def canonical(self) -> bytes:
        return canonical_json(
            {
                "code_hash": self.code_hash,
                "dependencies": sorted(self.dependencies),
                "interval": self.interval,
                "node_type": self.node_type,
                "params": flatten(self.params),
                "period": self.period,
                "schema_compat_id": self.schema_compat_id,
            }
        )

    def node_id(self) -> str:
        """`blake3:` and the digest of the canonical bytes."""
        return content_hash(self.canonical())


def compute_key(node_id: str, world_id: str, execution_domain: str, as_of: str, partition: str) -> str:
    """The scope of a runtime cache entry."""
    return hash_parts(node_id, world_id, execution_domain, as_of, partition)


def eval_key(
    node_id: str,
    world_id: str,
    execution_domain: str,
    contract_id: str,
    dataset_fingerprint: str,
    code_version: str,
    resource_policy: str,
) -> str:
    """The scope of a validation result."""
    return hash_parts(
        node_id, world_id, execution_domain, contract_id, dataset_fingerprint, code_version, resource_policy
    )


def node_ids_crc32(node_ids: Iterable[str]) -> int:
    """CRC-32 of the sorted NodeIDs joined by line feeds, so that `["a", "b"]` and `["ab"]` differ."""
    return zlib.crc32("\n".join(sorted(node_ids)).encode())


def strategy_id(node_ids: Iterable[str], edges: Iterable[tuple[str, str]]) -> str:
    """The same DAG is the same strategy."""
    return "strategy:" + hash_of(
        {"nodes": sorted(node_ids), "edges": sorted([list(edge) for edge in edges])}
    ).removeprefix(PREFIX)
