"""What a participant needs at home, beside the submission."""
