"""Queues of node outputs: topics, messages, the catalogue, retention."""
