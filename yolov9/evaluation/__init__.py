"""What detections are worth: COCO's figures, confusion of classes, curves over the confidence, and their report.

All of it works on what has been found already (`results`); `yolov9.val` runs the model.
"""
