"""Crews at work on a task, as an earlier system documented it."""
