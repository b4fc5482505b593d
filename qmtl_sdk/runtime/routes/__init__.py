"""The Gateway's routes, as methods of the client: one class for each group of routes."""
