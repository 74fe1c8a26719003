"""From a folder of good images to a fitted detector."""
