"""`make demo`: snapshots of real guests, told as a story on a terminal; every claim in it is checked by code."""
