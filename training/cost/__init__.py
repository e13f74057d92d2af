"""What training takes of time and memory."""
