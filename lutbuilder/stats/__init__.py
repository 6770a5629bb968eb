"""The statistics of timing: pure functions on numpy arrays. Imports numpy and scipy only."""
