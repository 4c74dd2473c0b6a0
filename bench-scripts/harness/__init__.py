"""What `compare` is made of. See ../README.md."""
