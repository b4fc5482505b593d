"""Events: the outbox, the relay that publishes it, and the ControlBus."""
