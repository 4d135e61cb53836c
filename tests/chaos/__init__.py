"""Chaos: random faults while jobs flow, and after each round a verdict on every byte and every state."""
