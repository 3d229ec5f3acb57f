"""Long runs with faults: does anything grow, leak or get lost?

`schedule` draws the faults, `run` does them to a server while `sample` looks at what it uses, `trend` judges.
"""
