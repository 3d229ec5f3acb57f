"""Checkpoints that others wrote: read without running code from the file, recognised, brought into our layout.

A file goes through four rooms: `archive` (the zip container), `pickles` with `globals` and `tensors` (an interpreter
for pickles that can only build data), the layouts (`r1`, `r2`, `ultralytics`, `plain`) and `matching` (which
architecture has these shapes). `reading.read` joins the first three; `yolov9.load` is the way in for everybody else.
`releases` and `download` fetch the published files. Importing the package brings no torch.
"""
