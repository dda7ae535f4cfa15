"""A host to talk to: stand-ins for what runs beside the sidecar. For the demo and the tests."""
