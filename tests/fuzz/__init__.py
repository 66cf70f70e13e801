"""Damaged and hostile input for every reader: see :mod:`tests.fuzz.__main__` for the command."""
