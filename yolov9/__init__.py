"""YOLOv9: GELAN and programmable gradient information. Importing it brings no torch; models load it when asked for."""
