"""Measurements that stand behind the docs: quality, speed, memory; no part of the package."""
