"""How much of a picture is left in the features of deep, untrained networks: behind `python -m yolov9.bottleneck`."""
