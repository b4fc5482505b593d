"""Identities:

NodeID, ComputeKey, EvalKey, strategy_id, and the CRC of a submission. SDK and services share this code.

A NodeID identifies what is computed, not where, when, by whom or under which name. A ComputeKey adds where
(world, domain, as_of, partition); an EvalKey adds contract and resource policy. Only services derive these.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

from qmtl_sdk.contracts.canonical import canonical_json, content_hash, flatten, hash_of, hash_parts
from qmtl_sdk.contracts.errors import QmtlError

PREFIX = "blake3:"
"""The start of every content hash: the name of its algorithm."""

STRATEGY_PREFIX = "strategy:"
"""The start of every strategy_id."""


_CONTEXT_PARAMS = frozenset(
    {
        "as_of",
        "dataset_fingerprint",
        "domain",
        "env",
        "environment",
        "execution_domain",
        "partition",
        "timestamp",
        "world",
        "world_id",
    }
)


def require_no_context(params: Mapping[str, Any], label: str, node_id: str = "") -> None:
    """Raise QmtlError (E_NODE_ID_FIELDS) where a parameter is named after where or when a node computes.

    Those never enter a NodeID: the same computation would have another identity in each world.
    """
    for name in sorted(_names(params)):
        if name.lower() in _CONTEXT_PARAMS or name.lower().startswith("env_"):
            raise QmtlError(
                "E_NODE_ID_FIELDS",
                f"{label}: the parameter {name[:64]!r} says where or when it computes, which no NodeID holds",
                "leave it out: the world decides it; what selects data belongs into the StreamInput",
                node=node_id,
                field=name[:64],
            )


def _names(params: Mapping[str, Any]) -> Iterator[str]:
    """List the names of parameters at every level. (Any: their values.)"""
    for name, value in params.items():
        yield str(name)
        if isinstance(value, Mapping):
            yield from _names(value)


@dataclass(frozen=True, slots=True)
class CanonicalNodeSpec:
    """The fields that a NodeID is a hash of.

    `interval` is in seconds, `period` in bars. `dependencies` are NodeIDs, in any order. `schema_compat_id`
    names the major version of the output's schema. `code_hash` covers the compute function and all that it
    uses.
    """

    node_type: str
    interval: int
    period: int
    params: Mapping[str, Any] = field(default_factory=dict)
    dependencies: tuple[str, ...] = ()
    schema_compat_id: str = "v1"
    code_hash: str = ""

    def canonical(self) -> bytes:
        """Return the canonical JSON of the fields."""
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
        """Return `blake3:` and the digest of the canonical bytes, in hex."""
        return content_hash(self.canonical())


def compute_key(node_id: str, world_id: str, execution_domain: str, as_of: str, partition: str) -> str:
    """Return the ComputeKey, which scopes a cache entry."""
    return hash_parts(node_id, world_id, execution_domain, as_of, partition)


@dataclass(frozen=True, slots=True)
class ValidationScope:
    """What a validation result of a node holds for."""

    node_id: str
    world_id: str
    execution_domain: str
    contract_id: str
    dataset_fingerprint: str
    code_version: str
    resource_policy: str = ""


def eval_key(scope: ValidationScope) -> str:
    """Return the EvalKey, which scopes a validation result."""
    return hash_parts(*astuple(scope))


def node_ids_crc32(node_ids: Iterable[str]) -> int:
    """Return the CRC-32 of the sorted NodeIDs.

    Line feeds between them make `["a", "b"]` and `["ab"]` differ.
    """
    return zlib.crc32("\n".join(sorted(node_ids)).encode())


def strategy_id(node_ids: Iterable[str], edges: Iterable[tuple[str, str]]) -> str:
    """Return the strategy_id:

    `strategy:` and the hash of the NodeIDs and edges. Equal DAGs have equal ids.
    """
    return STRATEGY_PREFIX + hash_of(
        {"nodes": sorted(node_ids), "edges": sorted([list(edge) for edge in edges])}
    ).removeprefix(PREFIX)
