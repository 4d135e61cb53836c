"""Hosts and an SPM without hypervisors, on the real wire: the agent's own operations over the fakes, with delays."""
