"""Which of the waiting frames go to the engine now, and the way they go."""
