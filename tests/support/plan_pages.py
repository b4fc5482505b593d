"""Requests of each page of the Gateway, with each of its parameters."""

PAGES: dict[str, list[str]] = {
    "/strategies/{strategy_id}/status": [
        "/strategies/strategy:s5/status?wait=0",
        "/strategies/strategy:s5/status?world_id=w",
        "/strategies/strategy:s5/status?run_id=r205",
    ],
    "/worlds": ["/worlds"],
    "/worlds/{world_id}": ["/worlds/w", "/worlds/none"],
    "/worlds/{world_id}/policies": ["/worlds/w/policies"],
    "/worlds/{world_id}/policies/{version}": ["/worlds/w/policies/1"],
    "/worlds/{world_id}/policies/{version}/diff": ["/worlds/w/policies/1/diff?to=1"],
    "/worlds/{world_id}/explain/{strategy_id}": ["/worlds/w/explain/strategy:s5"],
    "/worlds/{world_id}/bindings": ["/worlds/w/bindings"],
    "/worlds/{world_id}/nodes": ["/worlds/w/nodes", "/worlds/w/nodes?execution_domain=backtest"],
    "/worlds/{world_id}/fingerprints": ["/worlds/w/fingerprints"],
    "/worlds/{world_id}/applies": ["/worlds/w/applies", "/worlds/w/applies?limit=100"],
    "/worlds/{world_id}/applies/{run_id}": ["/worlds/w/applies/r50?wait=0"],
    "/worlds/{world_id}/changes": ["/worlds/w/changes"],
    "/worlds/{world_id}/promotions": ["/worlds/w/promotions"],
    "/worlds/{world_id}/promotions/{strategy_id}": ["/worlds/w/promotions/strategy:s5"],
    "/worlds/{world_id}/fence": ["/worlds/w/fence"],
    "/worlds/{world_id}/edges/overrides": ["/worlds/w/edges/overrides"],
    "/worlds/{world_id}/audit": [
        "/worlds/w/audit?limit=1000",
        "/worlds/w/audit?after=90",
        "/worlds/w/audit?verify=false",
    ],
    "/allocations": ["/allocations"],
    "/rebalancing/runs": ["/rebalancing/runs?limit=10"],
    "/rebalancing/runs/{run_id}": ["/rebalancing/runs/r5?wait=0"],
    "/rebalancing/schedules": ["/rebalancing/schedules"],
    "/rebalancing/schedules/{name}": ["/rebalancing/schedules/daily"],
    "/audit": ["/audit?limit=1000", "/audit?after=90", "/audit?verify=false"],
    "/worlds/{world_id}/positions": [
        "/worlds/w/positions",
        "/worlds/w/positions?as_of=2100-01-01T00:00:00Z",
        "/worlds/w/positions?strategy_id=strategy:s5&closed=true&limit=10",
        '/worlds/w/positions?after=["strategy:s5","paper","S5"]&limit=10',
    ],
    "/worlds/{world_id}/reconciliation": ["/worlds/w/reconciliation"],
    "/worlds/{world_id}/positions/summary": ["/worlds/w/positions/summary?largest=3"],
    "/worlds/{world_id}/report": [
        "/worlds/w/report",
        "/worlds/w/report?days=400&strategy_id=strategy:s5",
    ],
    "/worlds/{world_id}/ledger": [
        "/worlds/w/ledger?limit=1000",
        "/worlds/w/ledger?after=1&strategy_id=strategy:s5",
    ],
    "/orders": [
        "/orders?world_id=w&limit=300",
        "/orders?world_id=w&after=300",
        "/orders?world_id=w&reason=halted",
        "/orders?world_id=w&newest=true&limit=100",
        "/orders?world_id=w&newest=true&limit=10&state=refused&state=withheld",
        "/orders?world_id=w&strategy_id=strategy:s5&newest=true&limit=10",
        "/orders?world_id=w&strategy_id=strategy:s0&newest=true&limit=10&state=refused",
    ],
    "/orders/changes": [
        "/orders/changes?world_id=w",
        "/orders/changes?world_id=w&after=300&strategy_id=strategy:s5",
        "/orders/changes?world_id=w&after=300&state=refused",
        "/orders/changes?world_id=w&after=300&reason=halted",
    ],
    "/worlds/{world_id}/decisions": ["/worlds/w/decisions?limit=100"],
    "/worlds/{world_id}/activation": [
        "/worlds/w/activation",
        "/worlds/w/activation?strategy_id=strategy:s5",
    ],
    "/worlds/{world_id}/activation/state_hash": ["/worlds/w/activation/state_hash"],
    "/sessions": [
        "/sessions",
        "/sessions?ended=true",
        "/sessions?world_id=w",
        "/sessions?world_id=w&ended=true",
    ],
    "/queues/by_tag": [
        "/queues/by_tag?tags=price&interval=1h&world_id=w&execution_domain=backtest",
        "/queues/by_tag?tags=price,A&interval=1h&world_id=w&execution_domain=backtest&match_mode=all",
    ],
    "/queues/{topic}/messages": ["/queues/t5/messages?after=0&limit=10&last=true&session_id=s5"],
    "/events/dead-letters": ["/events/dead-letters", "/events/dead-letters?after=3&limit=10"],
    "/principals": ["/principals"],
    "/tokens": ["/tokens", "/tokens?limit=10&after=t5"],
    "/status": ["/status"],
    "/health": ["/health"],
    "/metrics": ["/metrics"],
}

NO_STATEMENTS = {
    "/artifacts/{content_hash}": "reads a file",
    "/events/poll": "reads the bus; its token is checked by its signature",
    "/events/schema": "is made of the code",
    "/events/jwks": "reads the key file",
}
"""Pages that read nothing from the database, with the reason."""

SHOWS_LESS = {
    "GET /worlds/w/fingerprints": "those of the newest evidence of each strategy, once each",
    "GET /worlds/w/positions?as_of=2100-01-01T00:00:00Z": "positions that were flat then are looked up too",
}
"""Lists that load more than they show, with the reason."""
