"""Students: made from their teacher, built by the user's code, or read from a file."""
