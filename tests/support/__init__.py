"""A whole manager inside a test: the real API, controllers and store, with scripted nodes on an in-memory link."""
