"""What to ask for: predicates, their debounce, and the lease on the control topic."""
