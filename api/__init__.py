"""Every face of QMTL: HTTP and the `qmtl` command."""
