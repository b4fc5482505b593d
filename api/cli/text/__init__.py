"""What commands print for people: pure functions from contracts to lines and tables."""
