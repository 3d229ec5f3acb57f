"""Package data: model architectures, recipes, server settings, deployment. Read through importlib.resources."""
