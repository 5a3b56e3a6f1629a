"""A training that is killed again and again; `python -m tests.crash 100` kills it so many times."""
