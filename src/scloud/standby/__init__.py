"""A manager that does not lead: it waits for the lease, passes connections on, and keeps copies of images."""
