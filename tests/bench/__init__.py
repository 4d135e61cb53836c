"""Benchmarks: this project and its floor, alternating in the same run (BENCHMARKS.md says how to read them)."""
