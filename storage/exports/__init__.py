"""Frozen data sets as files that other tools read, and our own form of them back into a database."""
