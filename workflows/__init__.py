"""One file a workflow. Orchestration only: no I/O, no clocks but Temporal's."""
