"""What ``--data`` and ``--input`` mean: sources of inputs, splits, synthetic inputs."""
