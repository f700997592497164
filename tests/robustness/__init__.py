"""Attacks with seeds: damaged and hostile inputs, odd files and places, against the real command line.

`samples` makes whole inputs, `attacks` damages them, `runner` runs a command in a process of its own and judges how it
ended. `test_fuzz` runs a few of each class; `scripts/fuzz.py` runs thousands.
"""
