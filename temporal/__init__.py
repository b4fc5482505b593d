"""Temporal outside workflows: local server, client, worker, schedules, and the Gateway's services."""

import activities as activities  # first: it sets how often Python collects garbage
