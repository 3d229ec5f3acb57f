"""One worker process for each device; it runs a `yolov9.engines.Engine` on frames in shared memory."""
