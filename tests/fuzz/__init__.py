"""Mutated and hostile inputs for every parser: the project's own errors only, in bounds."""
