"""Results of submissions as text."""

from typing import TYPE_CHECKING, Any

from api.cli.output import table

if TYPE_CHECKING:
    from qmtl_sdk.runtime.result import SubmitResult


def result_text(result: "SubmitResult") -> list[Any]:
    """Describe a result: the decision, the metrics, and node counts. (Any: rich tables.)

    The metrics are the service's, and without a decision those that this process computed.
    """
    measured = result.metrics if result.ws.decision else result.precheck.get("metrics", {})
    metrics = [[name, "missing" if value is None else f"{value:.4g}"] for name, value in measured.items()]
    source = "value" if result.ws.decision else "as computed here"
    counts = result.nodes
    safe = f" (safe mode: {result.context.downgrade_reason})" if result.safe_mode else ""
    lines: list[Any] = [f"{result.name} in {result.world}: {result.verdict}"]
    if metrics:
        lines.append(table(["metric", source], metrics))
    lines.append(
        f"nodes     {counts.new} new, {counts.reused} reused; "
        f"{counts.computed} computed, {counts.cached} from the cache"
    )
    lines.append(f"domain    {result.context.execution_domain.value}{safe}")
    if result.allocation:
        lines.append(f"capital   {result.allocation.text}")
    if result.self_reported:
        lines.append(f"note      self-reported, so no further than backtest: {result.self_reported}")
    lines += [f"note      {text}" for text in result.precheck.get("warnings", [])]
    lines.append(f"strategy  {result.strategy_id}")
    if result.ui_url:
        lines.append(f"workflow  {result.ui_url}")
    return lines
