"""Training vitals: one tap inside the compiled step, and what reads it."""
