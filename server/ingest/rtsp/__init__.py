"""RTSP cameras, received by ourselves: marker bits, sequence numbers and sender reports instead of guesses.

`source.RtspSource` is the public class. Everything but `client`, `sockets` and `source` is pure: bytes in, values out.
This room imports the standard library and `server.ingest.source` alone.
"""
