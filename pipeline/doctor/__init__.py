"""Does this environment carry a run? Looked at from the driver and from every node, with a remedy for what does not."""
