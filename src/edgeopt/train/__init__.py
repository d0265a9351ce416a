"""What needs gradients or a module's code: pruning, losses, students, the training loop."""
