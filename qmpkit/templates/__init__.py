"""Machines that have booted once, and any number of clones of them."""
