"""Plain PyTorch: the definition of every op, and what its kernels are held to."""
