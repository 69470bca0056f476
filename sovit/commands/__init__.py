"""The commands of `sovit`, by what they are about: their options, and what the core itself answers."""
