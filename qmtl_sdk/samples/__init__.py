"""Real prices and strategies that QMTL ships, for trying it out and for its tests."""
