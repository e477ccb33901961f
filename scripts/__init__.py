"""What is run by hand in a clone of the repository."""
