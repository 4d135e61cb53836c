"""How a kind of storage does what the operations ask. One module for each kind; all pass tests/contracts."""
