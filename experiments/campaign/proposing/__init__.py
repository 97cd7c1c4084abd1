"""What agents know when they propose, what they propose, and what came of it."""
