"""The faces of QMTL: the HTTP and WebSocket Gateway, and the `qmtl` command."""

import activities as activities  # first: while the rest is loaded, garbage is collected less often
