"""The public functions: each checks its arguments, chooses a backend and attaches autograd."""
