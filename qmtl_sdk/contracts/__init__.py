"""The contracts of QMTL: identity, DAG, domains, envelopes, policy and errors. No I/O, no clocks."""
