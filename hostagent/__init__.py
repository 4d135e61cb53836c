"""The host agent: pivots and probes machines through libvirt."""
