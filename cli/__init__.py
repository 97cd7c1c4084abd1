"""The command line: parse, call one function, draw a view."""

STOPPED = 130  # exit code of what a person stopped
RECORD = "SSM_METARL_DONE_RECORD"
"""The variable that says of which campaigns a process in the background writes a record when it ends; see `cli.background`."""
