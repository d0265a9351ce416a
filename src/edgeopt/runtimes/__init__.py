"""One module a runtime: open a model file as a session, run it, say where it runs."""
