"""Topics: what they are called and how they are laid out."""
