"""The faces of QMTL: the HTTP and WebSocket Gateway, and the `qmtl` command."""
