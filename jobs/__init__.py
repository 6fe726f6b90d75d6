"""One file = one command: parse the config, call one pipeline function, print a short result."""
