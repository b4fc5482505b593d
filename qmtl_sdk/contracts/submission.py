"""The words of a submission: what goes up, what is acknowledged, what comes back."""

import json
import uuid
from typing import Any, Literal

from pydantic import Field, model_validator

from qmtl_sdk.contracts.dag import Dag
from qmtl_sdk.contracts.domains import ComputeContext
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.worlds import ActivationEnvelope, DecisionEnvelope, Execution, Preset, WorldId


class SubmissionMeta(Model):
    """What a client says of itself. `execution_domain` is a hint that never raises the domain; `as_of` pins the data (ISO, UTC)."""

    name: str = Field("", max_length=200)
    execution_domain: str | None = Field(None, max_length=64)
    as_of: str | None = Field(None, max_length=64)


class StrategySubmit(Model):
    """`POST /strategies`. `world_ids` with one world and `dag_json` with the DAG as text are read as well. Without an idempotency key each request is a new one."""

    world_id: WorldId
    dag: Dag
    node_ids_crc32: int = Field(ge=0, lt=2**32)
    idempotency_key: str = Field(default_factory=lambda: uuid.uuid4().hex, min_length=8, max_length=128)
    runner: str = Field("", max_length=128, description="who will compute; empty: nobody yet")
    meta: SubmissionMeta = SubmissionMeta()

    @model_validator(mode="before")
    @classmethod
    def _other_spellings(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        body = dict(body)
        if "world_ids" in body and "world_id" not in body:
            worlds = body.pop("world_ids")
            if not isinstance(worlds, list | tuple) or len(worlds) != 1:
                raise ValueError("world_ids holds one world: submit once for each")
            body["world_id"] = worlds[0]
        if "dag_json" in body and "dag" not in body:
            body["dag"] = json.loads(body.pop("dag_json"))  # its fault is a ValueError, as Pydantic wants it
        return body


class StreamBinding(Model):
    """Where a StreamInput's bars come from, decided by the world."""

    node_id: str
    preset: Preset
    stream: str


class QueueTarget(Model):
    """A node's place: its topic, its cache scope, and whether the graph had the node already."""

    topic: str
    compute_key: str
    reused: bool


class Lease(Model):
    """The right and duty to compute. Heartbeat within `heartbeat_timeout_s`, or another runner may take it over."""

    lease_id: str
    heartbeat_timeout_s: float
    resume_from: dict[str, Any] = {}


class SubmissionAck(Model):
    """What a runner needs to compute: `queue_map` by NodeID, the context, the bindings and, if nobody else computes, the lease."""

    world_id: str
    strategy_id: str
    workflow_id: str
    run_id: str
    queue_map: dict[str, QueueTarget]
    nodes_new: int
    nodes_reused: int
    sentinel_id: str
    context: ComputeContext
    bindings: tuple[StreamBinding, ...]
    execution: Execution
    lease: Lease | None = None


class DryRun(Model):
    """`POST /strategies/dry-run`: what a submission would do. Nothing is written."""

    strategy_id: str
    nodes_new: tuple[str, ...]
    nodes_reused: tuple[str, ...]
    topics: dict[str, str]
    context: ComputeContext
    bindings: tuple[StreamBinding, ...]


class Heartbeat(Model):
    """How far the computation is."""

    node: str = Field("", max_length=200)
    bar: int = Field(0, ge=0)
    bars: int = Field(0, ge=0)
    nodes_done: int = Field(0, ge=0)
    nodes: int = Field(0, ge=0)


class EvidenceRef(Model):
    """The computed returns, by content hash. `precheck` is what the client says of itself and decides nothing."""

    returns_hash: str = Field(pattern=r"^blake3:[0-9a-f]{64}$")
    dataset_fingerprint: str = Field("", max_length=128)
    precheck: dict[str, Any] = {}


class LeaseFailure(Model):
    """Why a runner gives its lease back. `final` says that computing again would fail again."""

    code: str = Field(max_length=64)
    message: str = Field(max_length=4000)
    final: bool
    progress: Heartbeat = Heartbeat()


class Outcome(Model):
    """What a submission came to. `metrics` are the service's; a missing one is None."""

    world_id: str
    strategy_id: str
    run_id: str
    status: Literal["decided", "failed", "shadow"]
    metrics: dict[str, float | None] = {}
    returns_hash: str = ""
    decision: DecisionEnvelope | None = None
    activation: ActivationEnvelope | None = None
    error_code: str = ""
    error: str = ""


class StrategyStatus(Model):
    """`GET /strategies/{id}/status`: the newest run of a strategy in a world."""

    world_id: str
    strategy_id: str
    name: str = ""
    workflow_id: str
    run_id: str
    ui_url: str = ""
    state: Literal["running", "decided", "failed", "shadow"]
    step: str = ""
    needs_runner: bool = Field(False, description="nobody computes it now: submit it again")
    outcome: Outcome | None = None
