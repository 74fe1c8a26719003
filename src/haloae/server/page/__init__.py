"""The operator's page: what it shows, what is done in it, and its texts."""
