"""Runner, session, Gateway client and configuration."""
