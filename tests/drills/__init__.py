"""Drills: workers killed at chosen moments, and what the workspace holds afterwards."""
