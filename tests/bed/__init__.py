"""The test bed: isolated real hosts, tiny real guests, private servers. A plain library, for pytest and the demo."""
