"""One small file for each command that is not Lightning's own; each has ``main(arguments)``."""
