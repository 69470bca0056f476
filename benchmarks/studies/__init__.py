"""One question each, asked once and kept: the commands behind the README's table of measurements."""
