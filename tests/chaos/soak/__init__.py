"""A year in one world, thinned out: nothing is killed, and nothing may grow, slow down or get lost."""
