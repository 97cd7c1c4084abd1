"""The order in which agents speak and code acts."""
