"""Which models there are, which one answers, and how another takes its place while frames keep coming."""
