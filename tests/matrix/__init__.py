"""The fault matrix: at every crash point of every step, each process dies once, on a real guest (`make matrix`)."""
