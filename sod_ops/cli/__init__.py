"""The command line, ``python -m sod_ops``: one module per command, and what the commands share."""
