"""The test suite of livesnap."""
