"""Promotions as text."""

from typing import Any

from api.cli.names import SHORT_ID
from api.cli.output import table
from api.cli.text.applies import approve_command
from qmtl_sdk.contracts.domains import stage_of
from qmtl_sdk.contracts.promotions import PromotionView


def promotion_text(found: PromotionView) -> list[Any]:
    """Describe a promotion: its conditions, what it waits for, and its apply. (Any: rich tables.)"""
    progress = found.progress
    name = progress.label if progress else found.strategy_id[:SHORT_ID]
    lines: list[Any] = [f"{name} of {found.world_id} to {found.to}, requested by {found.requested_by}"]
    if progress is not None and progress.target:
        rows = [
            [condition.name, "holds" if condition.met else "missing", condition.detail]
            for condition in progress.conditions
        ]
        title = f"conditions for {stage_of(progress.target)}; it is in {stage_of(progress.stage)}"
        lines.append(table(["condition", "", ""], rows, title))
    lines.append(f"{found.outcome or 'waits'}: {found.waits_for}")
    if found.apply_run:
        lines.append(approve_command(found.world_id, found.apply_run))
    if found.workflow_url:
        lines.append(f"  {found.workflow_url}")
    return lines
