"""Checks that this environment can support a run, from the driver and from every node, with a remedy per problem."""
