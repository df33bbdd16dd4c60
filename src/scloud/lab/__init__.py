"""A cloud of several nodes on one machine: the nodes' namespaces, the wires between them, and faults on demand."""
