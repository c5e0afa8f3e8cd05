"""What to run, and where: job specifications and their executors."""
