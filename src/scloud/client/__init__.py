"""The client of the REST API: contexts, requests, streams. Used by the command line; imports nothing of the manager."""
