"""The Manager: jobs, durable state, HTTP API and command line."""
