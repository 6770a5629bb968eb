"""What to measure and when to stop: missing ops, batches with sentinels, rounds, ETA."""
