"""Results of submissions as text."""

from typing import TYPE_CHECKING, Any

from api.cli.output import table

if TYPE_CHECKING:
    from qmtl_sdk.runtime.result import SubmitResult


def result_text(result: "SubmitResult") -> list[Any]:
    """Describe a result: the decision, the service's metrics, and node counts. (Any: rich tables.)"""
    metrics = [
        [name, "missing" if value is None else f"{value:.4g}"] for name, value in result.metrics.items()
    ]
    counts = result.nodes
    safe = f" (safe mode: {result.context.downgrade_reason})" if result.safe_mode else ""
    lines: list[Any] = [f"{result.name} in {result.world}: {result.verdict}"]
    if metrics:
        lines.append(table(["metric", "value"], metrics))
    lines.append(
        f"nodes     {counts.new} new, {counts.reused} reused; "
        f"{counts.computed} computed, {counts.cached} from the cache"
    )
    lines.append(f"domain    {result.context.execution_domain.value}{safe}")
    if result.self_reported:
        lines.append(f"note      self-reported, so no further than backtest: {result.self_reported}")
    lines += [f"note      {text}" for text in result.precheck.get("warnings", [])]
    lines.append(f"strategy  {result.strategy_id}")
    if result.ui_url:
        lines.append(f"workflow  {result.ui_url}")
    return lines
