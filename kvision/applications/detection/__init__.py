"""Networks that find objects, one file a paper."""
