"""One module a command: `add_arguments(parser)` is cheap, `run(args, extra)` does the work."""
