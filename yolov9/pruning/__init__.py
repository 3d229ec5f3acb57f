"""Structured pruning: whole channels are removed, so that what is left is a smaller network of the same kind.

`spaces`: which channels can go, and which only together. `criteria`: what each is worth. `selection`: which go, for a
target. `surgery`: taking them out. `repair`: what the remaining weights can make up for, from pictures without labels.
`pruner` does all of it.
"""
