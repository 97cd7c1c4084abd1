"""The command line: parse, call one function, draw a view."""

STOPPED = 130  # exit code of what a person stopped
