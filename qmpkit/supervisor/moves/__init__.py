"""Kept machines that move: to another process of their supervisor, or to another supervisor."""
