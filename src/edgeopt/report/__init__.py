"""One proof document rendered as text."""
