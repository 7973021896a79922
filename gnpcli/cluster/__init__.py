"""How work reaches other machines, and what it costs there."""
