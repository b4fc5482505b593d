"""The global strategy graph: diffs, sentinels and the plan of queues."""
