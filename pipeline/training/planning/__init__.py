"""What a training costs, told without running it: operations, memory, hours and dollars."""
