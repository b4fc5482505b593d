"""Inputs and results of every workflow and activity, one module for each workflow."""
