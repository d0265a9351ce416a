"""One module a verb: each composes the rooms below and returns a value; none prints."""
