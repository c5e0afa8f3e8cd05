"""Prefect flows: configuration to jobs to summary, and no logic of their own."""
