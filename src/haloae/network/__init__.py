"""The network: pure torch, no files, no folders (sections B to E of the paper)."""
