"""The web console: pages made on the server from answers of the public REST API, and a little script to keep them live.

It imports `scloud.client` and `scloud.model` and nothing of the manager: what it can do, anyone can do with the API.
"""
