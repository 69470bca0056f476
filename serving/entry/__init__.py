"""Who is let in: keys, and a door that knows what is in the house and how fast it is finished."""
