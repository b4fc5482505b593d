"""WorldService: worlds, policies, evidence, decisions, activation."""
