"""The fault matrix: what can go wrong with cameras, engines, disks and clients, done to a real server and judged.

`matrix` is the table, to be read; `acts_*` do to a server what the table names; `bed` runs the server, its healthy
witnesses and the camera that suffers; `judge` holds what was seen against the table; `report` writes it down.
"""
