"""The daemon: front, engine, and the command line."""
