"""The protocol's model: the real saga between small models of everything that it talks to. MODEL.md is its page."""
