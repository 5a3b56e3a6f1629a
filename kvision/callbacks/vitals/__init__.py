"""Training vitals: one measurement inside the compiled step, and what reads it."""
