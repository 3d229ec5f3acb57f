"""Networks as PyTorch modules: blocks, heads, architectures from YAML. Nothing here reads checkpoints or pictures."""
