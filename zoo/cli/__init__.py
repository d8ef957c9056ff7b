"""Lightning's command line with ``--recipe``."""
