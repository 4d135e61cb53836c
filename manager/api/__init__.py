"""The HTTP API: `/v1` for people and programs, `/healthz` and `/metrics` for those who watch."""
