"""Programs of torch, folders and sparse weights: what prune and distill deliver."""
