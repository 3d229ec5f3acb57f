"""What detections mean over time: tracks, zones, lines, events. Pure cores; effects stand at the edges."""
