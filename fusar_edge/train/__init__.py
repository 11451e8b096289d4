"""Training: base (from scratch), stage 1 (knowledge injection), stage 2 (task execution); workshop."""
