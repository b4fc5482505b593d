"""Running Temporal: the local server, the client, the worker, and the calls that others make through it."""
