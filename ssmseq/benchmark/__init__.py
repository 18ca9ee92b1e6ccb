"""The benchmark suites: which runs there are, running them, and reporting what came out."""
