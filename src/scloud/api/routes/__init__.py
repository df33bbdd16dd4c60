"""One file per resource: paths, what they take, what they answer."""
