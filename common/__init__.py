"""What the Manager, the SPM and the host agent share."""
