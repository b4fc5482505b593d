"""What the services do: one folder for each owner of state, its rules apart from its stores."""
