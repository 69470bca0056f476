"""One artifact under the scenarios of the field's load generator."""
