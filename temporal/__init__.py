"""Temporal outside workflows: local server, client, worker, schedules, and the Gateway's services."""

import activities as activities  # first: while the rest is loaded, garbage is collected less often
