"""Networks that name the class of every pixel, one file a paper."""
