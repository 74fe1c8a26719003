"""In the plant: a service that inspects, an operator's page, sources, sinks, a store, drift."""
