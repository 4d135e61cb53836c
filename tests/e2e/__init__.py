"""Whole processes, real guests: what a user sees, from the command line."""
