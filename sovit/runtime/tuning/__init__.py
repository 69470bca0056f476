"""Which settings are the fastest here: measured, kept with the machine, and chosen from."""
