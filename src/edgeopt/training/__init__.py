"""The training loop: batches, losses, the teacher's answers, checkpoints, processes."""
