"""Sources through the system's GStreamer, in a helper process of the system's Python."""
