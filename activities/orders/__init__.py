"""The order log, the fence in front of it, and the venues behind it."""
