"""The commit log of submissions."""
