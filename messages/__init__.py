"""What is said to a user in the same form everywhere."""
