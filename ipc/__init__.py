"""The protocol and its clients."""
