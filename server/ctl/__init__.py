"""A running server from the command line."""
