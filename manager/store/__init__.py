"""The SQL store: tables, transactions, and one module for each kind of thing that is kept."""
