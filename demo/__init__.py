"""A host in small, for `make demo` and the tests; never installed."""
