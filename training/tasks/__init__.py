"""What each stage is trained on."""
