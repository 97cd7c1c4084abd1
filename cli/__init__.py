"""The command line: parse, call one function, draw a view."""
