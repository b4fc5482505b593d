"""What a strategy is built of."""
