"""Training: which anchor points learn what (`assigner`), what a prediction costs (`loss`)."""
