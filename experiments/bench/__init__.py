"""Measurements of this system against named rivals: `python main.py bench`."""
