"""Who may do what: tokens with roles and grants of single streams, kept as digests; logins of browsers; failed guesses.

Knows no web framework: `server/delivery/auth.py` asks, `python -m server.access` writes the file.
"""
