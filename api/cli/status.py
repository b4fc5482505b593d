"""`qmtl world status | explain`: what a world does now, and why."""

from fractions import Fraction

import typer

from api.cli.connection import gateway
from api.cli.names import StrategyNames
from api.cli.options import Output, StrategyArgument, WorldArgument
from api.cli.output import Format, guarded, print_result
from api.cli.text.positions import capital_text, holdings_text
from api.cli.text.status import (
    activation_text,
    data_text,
    fence_text,
    opening_text,
    rebalancing_text,
    runners_text,
)

app = typer.Typer()


@app.command()
@guarded
def status(world: WorldArgument, output: Output = Format.TEXT) -> None:
    """Show whether orders can pass, who trades, what is held and earned, which apply runs, and the data."""
    with gateway() as client:
        found = client.world(world)
        fence = client.fence(world)
        activation = client.activation(world)
        newest = client.applies(world, 1)
        decisions = client.decisions(world)
        sessions = client.sessions(world)
        fingerprints = client.fingerprints(world)
        policies = client.policies(world)
        summary = client.position_summary(world)
        names = StrategyNames(client, world)
        table = activation_text(activation, names)
        runners = runners_text(activation, sessions, names)
        holdings = holdings_text(summary, names)
    policy = next((item for item in policies if item["version"] == found.policy_version), None)
    apply = newest[0] if newest else None
    body = {
        "world": world,
        "fence": fence.json_dict(),
        "pinned_fingerprint": found.pinned_fingerprint,
        "policy_fingerprint": policy["gating_policy"]["dataset_fingerprint"] if policy else None,
        "fingerprints": fingerprints,
        "activation": [item.json_dict() for item in activation],
        "capital": found.spec.capital.json_dict() if found.spec.capital else None,
        "positions": summary.json_dict(),
        "sessions": len(sessions),
        "apply": apply.json_dict() if apply else None,
        "decision": decisions[0].json_dict() if decisions else None,
    }
    print_result(
        output,
        body,
        lambda: [
            *fence_text(fence),
            *opening_text(fence, apply),
            *capital_text(found.spec.capital, Fraction(fence.scale_factor), summary),
            *rebalancing_text(fence),
            *runners,
            data_text(fingerprints, policy, found.pinned_fingerprint),
            f"apply      {apply.run_id}: {apply.waits_for}" if apply else "apply      none yet",
            *table,
            *holdings,
        ],
    )


@app.command()
@guarded
def explain(world: WorldArgument, strategy: StrategyArgument, output: Output = Format.TEXT) -> None:
    """Show a strategy's stage, and the step of the decision and the figure that stopped it."""
    with gateway() as client:
        found = client.explain(world, strategy)
    print_result(output, found.json_dict(), lambda: list(found.lines))
