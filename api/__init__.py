"""The faces of QMTL: the HTTP and WebSocket Gateway, and the `qmtl` command."""

import activities as activities  # first, since it sets when Python looks for garbage
