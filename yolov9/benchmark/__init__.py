"""How fast engines run models here, compared fairly on a machine that is not alone: behind `python -m yolov9.bench`."""
