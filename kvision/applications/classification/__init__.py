"""Networks that name what an image shows, one file a paper."""
