"""What clients may ask, in our own words, OpenAI's or the Open Inference Protocol's: one road answers all."""
