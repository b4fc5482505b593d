"""The result of a submission, for code, the console and a notebook."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any

from qmtl_sdk.contracts.capital import StrategyCapital
from qmtl_sdk.contracts.decisions import ActivationEnvelope, DecisionEnvelope, StrategyDecision, Violation
from qmtl_sdk.contracts.domains import ComputeContext, Domain
from qmtl_sdk.contracts.submission import StrategyStatus, SubmissionAck, SubmissionOutcome
from qmtl_sdk.runtime.decided import decided_context

if TYPE_CHECKING:
    from qmtl_sdk.runtime.computation import Computed
    from qmtl_sdk.runtime.running import RunningStrategy


@dataclass(frozen=True)
class WorldView:
    """The decision and the activation as the service sent them; None without a decision."""

    decision: DecisionEnvelope | None
    activation: ActivationEnvelope | None


@dataclass(frozen=True)
class NodeCounts:
    """Nodes that are `new` or `reused` in the global graph, `computed` here or read from the cache."""

    new: int
    reused: int
    computed: int
    cached: int


@dataclass(frozen=True)
class SubmitResult:
    """The result of a submission.

    `status` is how the run ended: `decided`, `failed` or `shadow`; `undecided` where no outcome has arrived.
    `metrics` are the service's. `self_reported` says why its returns are not measured by the service.
    `precheck` holds this process's own findings, which decide nothing. `running` is the running strategy if
    the world activated it. `seconds` is the submission's duration. `allocation` is what the strategy trades
    with, as the service says; None without a decision. Nothing of a result can be set.
    """

    name: str
    world: str
    strategy_id: str
    workflow_id: str
    run_id: str
    ui_url: str
    ws: WorldView
    context: ComputeContext
    metrics: dict[str, float | None]
    precheck: dict[str, Any]
    nodes: NodeCounts
    seconds: float
    status: str = "undecided"
    returns_hash: str = ""
    self_reported: str = ""
    error_code: str = ""
    error: str = ""
    allocation: StrategyCapital | None = None
    running: "RunningStrategy | None" = field(default=None, compare=False, repr=False)

    @property
    def mine(self) -> StrategyDecision | None:
        """The decision about this strategy."""
        return self.ws.decision.of(self.strategy_id) if self.ws.decision else None

    @property
    def active(self) -> bool:
        return bool(self.mine and self.mine.active)

    @property
    def rank(self) -> int | None:
        return self.mine.rank if self.mine else None

    @property
    def weight(self) -> float:
        return self.mine.weight if self.mine else 0.0

    @property
    def contribution(self) -> float | None:
        """Weight · annual return; None without a decision or an annual return."""
        return self.mine.contribution if self.mine else None

    @property
    def violations(self) -> tuple[Violation, ...]:
        return self.mine.violations if self.mine else ()

    @property
    def safe_mode(self) -> bool:
        """Whether orders are off because there is no fresh decision."""
        return self.context.safe_mode

    @property
    def effective_mode(self) -> str:
        return self.ws.decision.effective_mode if self.ws.decision else "compute-only"

    def as_dict(self) -> dict[str, Any]:
        """The result as plain JSON types."""
        return {
            "name": self.name,
            "world": self.world,
            "strategy_id": self.strategy_id,
            "workflow_id": self.workflow_id,
            "run_id": self.run_id,
            "ui_url": self.ui_url,
            "effective_mode": self.effective_mode,
            "execution_domain": self.context.execution_domain.value,
            "safe_mode": self.safe_mode,
            "downgrade_reason": self.context.downgrade_reason,
            "status": self.status,
            "active": self.active,
            "rank": self.rank,
            "weight": self.weight,
            "allocation": self.allocation.json_dict() if self.allocation else None,
            "contribution": self.contribution,
            "metrics": self.metrics,
            "nodes_new": self.nodes.new,
            "nodes_reused": self.nodes.reused,
            "nodes_computed": self.nodes.computed,
            "nodes_cached": self.nodes.cached,
            "violations": [item.json_dict() for item in self.violations],
            "precheck": self.precheck,
            "seconds": round(self.seconds, 3),
            "running": self.running is not None and self.running.alive,
            "session_id": self.running.grant.session_id if self.running is not None else None,
            "returns_hash": self.returns_hash,
            "self_reported": self.self_reported,
            "error_code": self.error_code,
            "error": self.error,
        }

    @property
    def verdict(self) -> str:
        """The decision about this strategy in one line."""
        if self.ws.decision is None:
            why = f": {self.error}" if self.error else ""
            return f"no decision ({self.context.downgrade_reason}); computed only, orders are off{why}"
        if self.active:
            own = ", self-reported" if self.self_reported else ""
            return f"active, rank {self.rank}, weight {self.weight:.3g}{own}"
        why = "; ".join(f"{item.rule}: {item.detail}" for item in self.violations) or self.error
        return f"not active: {why}"

    def __str__(self) -> str:
        return f"{self.name} in {self.world}: {self.verdict}"

    def _repr_html_(self) -> str:
        rows = [
            ("decision", self.verdict),
            ("domain", f"{self.context.execution_domain.value}{' (safe mode)' if self.safe_mode else ''}"),
        ]
        rows += [
            (name, "missing" if value is None else f"{value:.4g}") for name, value in self.metrics.items()
        ]
        counts = self.nodes
        rows += [
            (
                "nodes",
                f"{counts.new} new, {counts.reused} reused; "
                f"{counts.computed} computed, {counts.cached} from the cache",
            ),
            ("strategy", self.strategy_id),
        ]
        body = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th><td>{escape(value)}</td></tr>"
            for name, value in rows
        )
        link = (
            f"<p><a href='{escape(self.ui_url, quote=True)}'>{escape(self.workflow_id)}</a></p>"
            if self.ui_url
            else ""
        )
        return f"<h4>{escape(self.name)} in {escape(self.world)}</h4><table>{body}</table>{link}"


def result_of(
    name: str,
    ack: SubmissionAck,
    computed: "Computed | None",
    status: StrategyStatus | None,
    seconds: float,
) -> SubmitResult:
    """Build the result of a submission from what the Gateway said and what was computed here."""
    outcome: SubmissionOutcome | None = status.outcome if status else None
    return SubmitResult(
        name=name,
        world=ack.world_id,
        strategy_id=ack.strategy_id,
        workflow_id=ack.workflow_id,
        run_id=ack.run_id,
        ui_url=status.ui_url if status else "",
        ws=WorldView(outcome.decision if outcome else None, outcome.activation if outcome else None),
        context=ack.context
        if ack.context.execution_domain is Domain.SHADOW
        else decided_context(ack, outcome, datetime.now(UTC)),
        metrics=outcome.metrics if outcome else {},
        precheck=computed.precheck if computed else {},
        nodes=NodeCounts(
            ack.nodes_new,
            ack.nodes_reused,
            computed.computed if computed else 0,
            computed.cached if computed else 0,
        ),
        seconds=seconds,
        status=outcome.status if outcome else "undecided",
        returns_hash=outcome.returns_hash if outcome else "",
        self_reported=outcome.self_reported if outcome else "",
        error_code=outcome.error_code if outcome else "",
        error=outcome.error if outcome else "",
        allocation=status.allocation if status else None,
    )
