"""Inputs and results of workflows and activities, and the signatures of activities for workflows."""
