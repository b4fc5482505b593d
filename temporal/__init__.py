"""Temporal outside workflows: local server, client, worker, schedules, and the Gateway's services."""

import activities as activities  # first, since it sets when Python looks for garbage
