"""The faces of QMTL: the HTTP and WebSocket Gateway, and the `qmtl` command."""

import activities as activities  # first: it sets how often Python collects garbage
