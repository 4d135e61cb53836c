"""Disk images: where volumes lie, how their chains hang together, and the only code that opens them."""
