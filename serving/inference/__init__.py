"""From image bytes to outputs: decoders, the work of a request, and models with their engines."""
