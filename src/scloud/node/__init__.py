"""How a node comes to life: its namespaces, and the keeper that keeps its agent running."""
