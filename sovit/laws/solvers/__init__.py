"""Sums of powers with coefficients that are not negative, fitted from many starts."""
