"""Pages in a browser: demo and review."""
