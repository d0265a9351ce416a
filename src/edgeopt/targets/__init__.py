"""What is delivered: a folder a deliverable, and what all of them share."""
