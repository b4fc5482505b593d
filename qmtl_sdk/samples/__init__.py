"""Real prices and strategies that QMTL ships, for trying it and for its tests."""
