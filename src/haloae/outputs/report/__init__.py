"""One HTML page that says how well a detector works: no network, no scripts, all in one file."""

REPORT = "report.html"
"""Its name in a folder of results."""
