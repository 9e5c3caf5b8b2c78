"""The networks: their units, attention, classes, specifications and names."""
