"""What may be searched and what is tried next."""
