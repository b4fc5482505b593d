"""Submissions: the request, its acknowledgement, the compute lease, evidence, and the outcome."""

import uuid
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, field_validator, model_validator

from qmtl_sdk.contracts.canonical import canonical_json, read_json
from qmtl_sdk.contracts.capital import StrategyCapital
from qmtl_sdk.contracts.dag import Dag
from qmtl_sdk.contracts.decisions import ActivationEnvelope, DecisionEnvelope
from qmtl_sdk.contracts.domains import ComputeContext
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.references import StrategyName
from qmtl_sdk.contracts.texts import Count, Message, PlainLine, Report, printable
from qmtl_sdk.contracts.worlds import Execution, Preset, WorldId

MAX_PRECHECK = 16_384
"""Bytes of what a client says about its own returns, as JSON."""

MAX_CACHE_HITS = 100
"""The largest number of nodes in one report of cache hits."""

CacheHitNodes = Annotated[
    tuple[Annotated[PlainLine, Field(min_length=1, max_length=128)], ...], Field(max_length=MAX_CACHE_HITS)
]
"""NodeIDs for which the cache had an output of another context. It was not used."""


def one_world(worlds: Any) -> Any:
    """Return the world of a submission, given alone or in a list. (Any: whatever a caller has sent.)

    Raises QmtlError: E_WORLDS_SEVERAL where a list names several worlds or none.
    """
    if not isinstance(worlds, list | tuple | set | frozenset):
        return worlds
    named = list({str(world): world for world in worlds}.values())
    if len(named) != 1:
        listed = ", ".join(printable(str(world), 64) for world in named[:5]) or "none"
        raise QmtlError(
            "E_WORLDS_SEVERAL",
            f"a submission is judged by one world, and this one names {listed}",
            "submit it once for each world: nodes are shared, so nothing is stored twice",
        )
    return named[0]


class SubmissionMeta(Model):
    """A client's statements about its submission.

    `execution_domain` is a hint that never raises the domain; `as_of` pins the data (ISO, UTC).
    """

    name: StrategyName = Field("", max_length=200)
    execution_domain: PlainLine | None = Field(None, max_length=64)
    as_of: PlainLine | None = Field(None, max_length=64)


class StrategySubmit(Model):
    """`POST /strategies`. Without an idempotency key, each request is a new submission.

    `world_ids` with one world and `dag_json` with the DAG as text are accepted as well. Raises QmtlError
    (E_WORLDS_SEVERAL) for more than one world.
    """

    world_id: WorldId
    dag: Dag
    node_ids_crc32: int = Field(ge=0, lt=2**32)
    idempotency_key: PlainLine = Field(default_factory=lambda: uuid.uuid4().hex, min_length=8, max_length=128)
    runner: PlainLine = Field("", max_length=128, description="the runner that will compute; empty: none yet")
    meta: SubmissionMeta = SubmissionMeta()

    @model_validator(mode="before")
    @classmethod
    def _other_spellings(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        body = dict(body)
        if "world_ids" in body:
            worlds = body.pop("world_ids")
            named = list(worlds) if isinstance(worlds, list | tuple) else [worlds]
            body["world_id"] = one_world([*named, *([body["world_id"]] if "world_id" in body else [])])
        if "dag_json" in body and "dag" not in body:
            text = body.pop("dag_json")
            if not isinstance(text, str):
                raise ValueError("dag_json holds the DAG as text")
            body["dag"] = read_json(text)  # raises a ValueError, as Pydantic expects
        return body


class StreamBinding(Model):
    """The world's stream for a StreamInput."""

    node_id: str
    preset: Preset
    stream: str


class BoundStream(Model):
    """A StreamInput and its stream, with the preset's name."""

    node_id: str
    preset: str
    stream: str


class PackedBindings(Model):
    """Bindings as they are sent and stored: each preset once, since it lists all of its streams."""

    presets: tuple[Preset, ...]
    streams: tuple[BoundStream, ...]


def _packed(bindings: "tuple[StreamBinding, ...]") -> PackedBindings:
    presets = {binding.preset.name: binding.preset for binding in bindings}
    streams = tuple(
        BoundStream(node_id=item.node_id, preset=item.preset.name, stream=item.stream) for item in bindings
    )
    return PackedBindings(presets=tuple(presets.values()), streams=streams)


def _unpacked(value: Any) -> Any:
    """Return bindings from their packed form, or what it is for validation. (Any: pydantic's own types.)"""
    if not isinstance(value, Mapping):
        return value
    packed = PackedBindings.model_validate(value)
    presets = {preset.name: preset for preset in packed.presets}
    missing = {item.preset for item in packed.streams} - set(presets)
    if missing:
        raise ValueError(f"no preset is called {min(missing)[:64]}")
    return tuple(
        StreamBinding(node_id=item.node_id, preset=presets[item.preset], stream=item.stream)
        for item in packed.streams
    )


StreamBindings = Annotated[
    tuple[StreamBinding, ...],
    BeforeValidator(_unpacked),
    PlainSerializer(_packed, return_type=PackedBindings),
]
"""The bindings of a run, which are sent and stored with each preset once."""


class QueueTarget(Model):
    """A node's queue: topic, ComputeKey, and whether the graph had the node before."""

    topic: str
    compute_key: str
    reused: bool


class Lease(Model):
    """The right and duty to compute a run.

    Without a heartbeat for `heartbeat_timeout_s` seconds, another runner may take over.
    """

    lease_id: str
    heartbeat_timeout_s: float
    resume_from: dict[str, Any] = {}


class SubmissionAck(Model):
    """What a runner needs to compute.

    `queue_map` is by NodeID. `node_ids_crc32` is of the NodeIDs that the services have, which the runner
    compares with its own. `lease` is missing if another runner holds it.
    """

    world_id: str
    strategy_id: str
    workflow_id: str
    run_id: str
    queue_map: dict[str, QueueTarget]
    nodes_new: int
    nodes_reused: int
    sentinel_id: str
    node_ids_crc32: int = 0
    context: ComputeContext
    bindings: StreamBindings
    execution: Execution
    lease: Lease | None = None


class DryRun(Model):
    """`POST /strategies/dry-run`: what a submission would do. Nothing is written."""

    strategy_id: str
    nodes_new: tuple[str, ...]
    nodes_reused: tuple[str, ...]
    topics: dict[str, str]
    context: ComputeContext
    bindings: StreamBindings


class Heartbeat(Model):
    """The progress of a computation."""

    node: Report = Field("", max_length=200)
    bar: Count = 0
    bars: Count = 0
    nodes_done: Count = 0
    nodes: Count = 0


class EvidenceRef(Model):
    """The computed returns, by content hash.

    `precheck` is the client's statement about itself and decides nothing.
    """

    returns_hash: str = Field(pattern=r"^blake3:[0-9a-f]{64}$")
    dataset_fingerprint: PlainLine = Field("", max_length=128)
    precheck: dict[Annotated[PlainLine, Field(max_length=64)], Any] = Field({}, max_length=100)
    cross_context_hits: CacheHitNodes = ()

    @field_validator("precheck")
    @classmethod
    def _small(cls, precheck: dict[str, Any]) -> dict[str, Any]:
        """Limit what decides nothing: it goes through histories and into the evidence."""
        size = len(canonical_json(precheck))
        if size > MAX_PRECHECK:
            raise ValueError(f"it has {size} bytes as JSON; {MAX_PRECHECK} are allowed")
        return precheck


class LeaseFailure(Model):
    """Why a runner returns its lease. `final`: computing again would fail again."""

    code: PlainLine = Field(max_length=64)
    message: Message = Field(max_length=4000)
    final: bool
    progress: Heartbeat = Heartbeat()


class SubmissionOutcome(Model):
    """The outcome of a submission. `metrics` are the service's; a missing metric is None.

    `self_reported`: why its returns are the author's own statement, with which it goes no further than
    backtest.
    """

    world_id: str
    strategy_id: str
    run_id: str
    status: Literal["decided", "failed", "shadow"]
    metrics: dict[str, float | None] = {}
    returns_hash: str = ""
    self_reported: str = ""
    decision: DecisionEnvelope | None = None
    activation: ActivationEnvelope | None = None
    error_code: str = ""
    error: str = ""


class StrategyStatus(Model):
    """`GET /strategies/{id}/status`: the newest run of a strategy in a world.

    `allocation`: what it trades with now; None before the run has ended.
    """

    world_id: str
    strategy_id: str
    name: str = ""
    workflow_id: str
    run_id: str
    ui_url: str = ""
    state: Literal["running", "decided", "failed", "shadow"]
    step: str = ""
    needs_runner: bool = Field(False, description="no runner computes it now: submit it again")
    outcome: SubmissionOutcome | None = None
    allocation: StrategyCapital | None = None
