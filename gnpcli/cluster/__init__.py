"""How work reaches other machines."""
