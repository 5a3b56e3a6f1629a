"""Networks that label pixels, of classes or of instances, one file a paper."""
