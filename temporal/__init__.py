"""Temporal outside workflows: local server, client, worker, schedules, and the Gateway's services."""
