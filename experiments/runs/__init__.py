"""One run: its process, its messages as rows, where it writes, and what it can be repeated from."""
