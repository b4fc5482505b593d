"""A simulated venue, pure: the fill model, fees, and a run of targets into orders and fills, in Decimal."""
