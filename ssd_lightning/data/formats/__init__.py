"""Annotation formats, the checks that all of them share, and the cache of what was read."""
