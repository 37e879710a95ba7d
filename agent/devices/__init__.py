"""What this box is and has, each figure with the source it comes from."""
